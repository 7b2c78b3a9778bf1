"""OpenMM: forces, walkers, guards, reporters."""
