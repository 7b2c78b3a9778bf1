"""Turns a run directory into figures, a report and a summary; nothing here feeds back into a campaign."""
