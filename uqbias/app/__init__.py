"""What stands where `openmm.app` stands: metadynamics, sampling and variables in the user's own System."""
