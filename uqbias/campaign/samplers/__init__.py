"""Samplers: from a model and safe frames to candidates; MD, PLUMED, attacks, random distortions, a pool."""
