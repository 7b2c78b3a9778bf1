"""Every file of a run: one writer and one reader."""
