"""From visited frames to frames worth a label."""
