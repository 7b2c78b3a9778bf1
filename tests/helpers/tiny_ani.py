"""Symmetry functions of a small ANI model for H, C and O."""

CONSTANTS = {
    "Rcr": 5.2,
    "Rca": 3.5,
    "EtaR": [16.0],
    "ShfR": [0.9, 1.7, 2.5, 3.3],
    "EtaA": [8.0],
    "Zeta": [32.0],
    "ShfA": [0.9, 1.55, 2.2],
    "ShfZ": [0.2, 0.98, 1.77, 2.55],
    "species": [8, 1, 6],
    "energies": [-2041.8, -16.3, -1036.0],
}
