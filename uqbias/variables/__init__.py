"""Collective variables of a geometry: smooth functions of the positions, evaluated in the same graph as the model."""
