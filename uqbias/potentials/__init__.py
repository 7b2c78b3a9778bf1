"""Potentials: positions to energies and per-atom latent features."""
