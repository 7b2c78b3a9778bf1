"""The picture of an example: what it followed, in time."""

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt


def draw(rows, time, path="figure.png", xlabel="time (ps)"):
    """One panel a row, name of the axis -> values at the times."""
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(6.4, 1.7 * len(rows) + 0.4), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, (label, values) in zip(axes[:, 0], rows.items(), strict=True):
        axis.plot(time, values, ".-", markersize=3, linewidth=0.7)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel(xlabel)
    figure.savefig(path, dpi=80)
