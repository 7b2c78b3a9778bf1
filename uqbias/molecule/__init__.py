"""Molecules: topology, frames, record of the geometries seen, geometric tests."""
