"""Methods of a free energy and its defaults, for the function and the command line; importing them loads nothing."""

#: Name to equation and source.
METHODS = {
    "tiwary-parrinello": "w = exp((V(t) - c(t))/kT), Tiwary and Parrinello, J. Phys. Chem. B 119, 736 (2015)",
    "quasi-static": "w = exp(V(t)/kT), V as it acted, Invernizzi and Parrinello, J. Phys. Chem. Lett. 11, 2731 (2020)",
    "last-bias": "w = exp(V/kT), V as at the end, Branduardi, Bussi, Parrinello, J. Chem. Theory Comput. 8 (2012)",
    "czar": "dF/dξ = -kT d ln ρ/dξ + k(<λ>-ξ), Lesage, Lelièvre, Stoltz and Hénin, J. Phys. Chem. B 121, 3676 (2017)",
    "cumulant": "F - kT ln <exp(ΔV/kT)> by cumulants, Miao et al., J. Chem. Theory Comput. 10, 2677 (2014)",
    "mbar": "w = 1/Σ N_k exp(f_k - V_k/kT), Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008)",
    "bias": "F = -γ/(γ-1) V - W (walls), at the end, Barducci, Bussi, Parrinello, Phys. Rev. Lett. 100, 020603 (2008)",
}
#: Chosen by the biases of the run.
METHOD = "auto"
#: Fraction of each run's observations that is left out at its start.
DISCARD = 0.1
#: Blocks in time of the jackknife that gives the error.
BLOCKS = 10
#: Order of the cumulant expansion.
ORDER = 2
#: Bins along one, and along each of two variables.
BINS = (60, 36)
