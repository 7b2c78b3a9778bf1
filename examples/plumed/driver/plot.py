"""Driver and uncertainty over the torsions, from a COLVAR of PLUMED."""

import sys

import matplotlib as mpl
import numpy as np

mpl.use("agg")
import matplotlib.pyplot as plt

_, phi, psi, driver, judge = np.loadtxt(sys.argv[1]).T
known = phi < 0
print(f"{len(phi)} frames")
for name, values in (("driver u, nats", driver), ("uncertainty, kJ/mol/nm", judge)):
    print(f"{name}: median {np.median(values[known]):.2f} where phi < 0, {np.median(values[~known]):.2f} where phi > 0")

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
for axis, values, name in zip(axes, (driver, judge), ("driver u (nats)", "uncertainty (kJ/mol/nm)"), strict=True):
    low, high = np.quantile(values, [0.02, 0.98])
    drawn = axis.scatter(np.degrees(phi), np.degrees(psi), c=values, s=8, vmin=low, vmax=high)
    figure.colorbar(drawn, ax=axis, label=name)
    axis.set(xlabel="φ (degrees)", xlim=(-180, 180), ylim=(-180, 180), xticks=range(-180, 181, 90))
axes[0].set(ylabel="ψ (degrees)", yticks=range(-180, 181, 90))
figure.savefig(sys.argv[2], dpi=75)
