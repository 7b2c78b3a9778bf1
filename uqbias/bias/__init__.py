"""From uncertainty and energy to a bias potential: a pure function of (u, E, state) and a host-side update."""
