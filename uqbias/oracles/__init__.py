"""Oracles: positions to reference energies and forces."""
