"""Free energies from runs: reweighting, the bias itself, CZAR, MBAR."""
