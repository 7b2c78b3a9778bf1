"""Uncertainties: latents, members or features to one number per walker."""
