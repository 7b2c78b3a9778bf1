"""The data of a figure as CSV, and the figure as SVG for a page of any colour scheme."""

from __future__ import annotations

import base64
import csv
import gzip
import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from uqbias.report.style import RC

#: Characters of a ``data:`` address that every browser takes (Chromium's limit is 2 MiB).
LONGEST = 1_900_000
#: Colours of ink and paper in `style.RC` and what a dark page has in their place; colours of data stay.
DARK = {
    "#222222": "#e4e7ea",
    "#555555": "#a3adb6",
    "#6b6b6b": "#b4bcc4",
    "#e6e6e6": "#343b41",
    "#f0f0f0": "#2a3036",
    "#f4f4f4": "#2a3036",
    "#ffffff": "#15181b",
    "#0072b2": "#3d9ede",
}


def inline_svg(figure: Figure) -> str:
    """``data:`` address of the figure as SVG without a background; dense layers inside it are bitmaps."""
    buffer = io.StringIO()
    with mpl.rc_context(RC):
        metadata = {"Date": None, "Creator": None}
        figure.savefig(buffer, format="svg", dpi=144, facecolor="none", metadata=metadata)
    rules = "".join(
        f'[style*="{part}: {light}"]{{{part}:{dark}!important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
        if (part, light) != ("stroke", "#ffffff")  # rims of markers, contours on dark maps
    )
    style = f"<style>@media screen and (prefers-color-scheme: dark){{{rules}}}</style>"
    text = buffer.getvalue().replace("<defs>", f"{style}<defs>", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode("ascii")


def csv_link(text: str) -> tuple[str, str]:
    """Suffix and ``data:`` address of a CSV, compressed where it is long; two empty texts beyond `LONGEST`."""
    plain = "data:text/csv;charset=utf-8," + quote(text, safe=",;:=()/ ").replace(" ", "%20")
    if len(plain) <= LONGEST:
        return ".csv", plain
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")
    return (".csv.gz", f"data:application/gzip;base64,{packed}") if len(packed) <= LONGEST else ("", "")


def figure_csv(figure: Figure) -> str:
    """What a figure draws, one row a point: panel, series, x, y and, on a map, value; lines of ``#`` name the axes.

    Contours and shaded areas, which only help the eye, are left out.
    """
    head, body = io.StringIO(), io.StringIO()
    table = csv.writer(body, lineterminator="\n")
    table.writerow(["panel", "series", "x", "y", "value"])
    panels = [ax for ax in figure.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]
    for number, ax in enumerate(panels, start=1):
        title, x, y = (" ".join(text.split()) for text in _headings(ax, panels))
        head.write(f"# panel {number}: {title}; x: {x}; y: {y}\n")
        for series, *columns in _series(ax):
            for row in zip(*columns, strict=True):
                cells = [value if isinstance(value, str) else f"{value:.6g}" for value in row]
                table.writerow([number, series, *cells, ""][:5])
    return head.getvalue() + body.getvalue()


def _headings(ax: Axes, panels: list[Axes]) -> tuple[str, str, str]:
    """Title and axis labels, which a panel in a grid may leave to its neighbours."""
    spec = ax.get_subplotspec()
    assert spec is not None
    same = {
        name: [other for other in panels if getattr(other.get_subplotspec(), name) == getattr(spec, name)]
        for name in ("colspan", "rowspan")
    }
    column, row = same["colspan"], same["rowspan"]
    title = next((text for each in (ax, *column) if (text := each.get_title(loc="left") or each.get_title())), "")
    x = next((text for each in (ax, *column[::-1]) if (text := each.get_xlabel())), "")
    y = next((text for each in (ax, *row) if (text := each.get_ylabel())), "")
    return title, x, y


def _series(ax: Axes) -> Iterator[tuple[Any, ...]]:
    """Name and columns of each thing that is drawn from data."""
    for line in ax.lines:
        if line.get_transform() == ax.transData:
            yield _name(line), *np.asarray(line.get_xydata(), dtype=np.float64).T
    for dots in ax.collections:
        if isinstance(dots, PathCollection):
            yield _name(dots), *np.ma.filled(np.ma.asarray(dots.get_offsets(), dtype=np.float64), np.nan).T
        elif isinstance(dots, QuadMesh):
            corners = np.asarray(dots.get_coordinates())
            x, y = (0.25 * (corners[1:, 1:] + corners[:-1, :-1] + corners[1:, :-1] + corners[:-1, 1:])).T
            values = np.ma.masked_invalid(np.ma.asarray(dots.get_array()).reshape(y.T.shape))
            known = ~np.ma.getmaskarray(values)
            yield _name(dots), x.T[known], y.T[known], values.compressed()
    for bars in ax.containers:
        if isinstance(bars, BarContainer):
            upright = bars.orientation == "vertical"
            names = (ax.xaxis if upright else ax.yaxis).get_major_formatter()
            boxes = [bar.get_bbox() for bar in bars]
            category = [str(names(0.5 * (b.x0 + b.x1 if upright else b.y0 + b.y1))) for b in boxes]
            ends = category, np.array([box.height if upright else box.width for box in boxes])
            yield _name(bars), *(ends if upright else ends[::-1])
    for outline in ax.patches:
        if isinstance(outline, Polygon) and outline.get_transform() == ax.transData:
            yield _name(outline), *np.asarray(outline.get_xy(), dtype=np.float64).T


def _name(artist: object) -> str:
    """Label of what is drawn; one with a leading ``_`` is kept from legends only."""
    return str(artist.get_label()).lstrip("_")  # type: ignore[attr-defined]
