"""Biases: (u, E, state) to V, and their host-side updates."""
