"""Feature spaces: what a density over geometries is a density of."""
