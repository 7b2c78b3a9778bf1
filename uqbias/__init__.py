"""Enhanced sampling whose collective variable is the uncertainty of a machine-learned potential."""

__version__ = "0.1.0"
