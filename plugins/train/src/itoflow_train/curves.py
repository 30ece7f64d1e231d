"""Error against evaluations as a plot (PNG)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from itoflow_train.comparison import Comparison

_MARKS = "osD^vPX*<>hd"


def plot(title: str, found: Comparison, path: Path, *, budget: int | None = None) -> None:
    """Two panels, median and RMSE, with the floor of the reference; a sampler keeps colour and mark in both.

    Arguments:
        budget: a number of evaluations that is marked.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, by in zip(panels, ("median", "rmse"), strict=True):
        for i, (label, row) in enumerate(found.rows.items()):
            curve = {cell.evaluations: getattr(cell.error, by) for cell in row.values() if cell is not None}
            mark = _MARKS[i % len(_MARKS)]
            axes.loglog(list(curve), list(curve.values()), f"-{mark}", color=f"C{i % 10}", ms=5, lw=1.5, label=label)
        axes.axhspan(0, getattr(found.floor, by), color="0.9", label="below the reference's error")
        if budget is not None:
            axes.axvline(budget, color="0.5", lw=1, ls=":", label=f"budget {budget}")
        axes.set_title("RMSE over examples" if by == "rmse" else "median example", fontsize=10)
        axes.set_xlabel("network evaluations")
        axes.xaxis.set_major_locator(FixedLocator(found.nfe))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    cells = [cell for row in found.rows.values() for cell in row.values() if cell is not None]
    shown = [value for cell in cells for value in (cell.error.median, cell.error.rmse) if value > 0] or [1.0]
    panels[0].set_ylim(min(shown) / 3, min(max(shown), 1e2) * 2)
    panels[0].set_ylabel("error, standard deviations of the data")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)
