"""Figures, summary and HTML report of a run folder; nothing here feeds back into a campaign."""
