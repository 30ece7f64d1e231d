"""Which rows of a table hold what a multistep method looks back on."""

from __future__ import annotations

from collections.abc import Sequence

from itoflow_samplers.frames import Point


class History:
    """The rows that call the network at the knots of a run; not every knot needs one.

    Arguments:
        knots: of the run.
    """

    def __init__(self, knots: Sequence[Point]) -> None:
        self._knots, self._rows = knots, dict[int, int]()

    def add(self, knot: int, row: int) -> None:
        """The network is called at this knot in this row."""
        self._rows[knot] = row

    def last(self, order: int, knot: int, row: int) -> tuple[list[Point], list[int]]:
        """Of this knot and the order - 1 before it those that have a row, newest first, and how far back from `row`."""
        used = [j for j in range(knot, max(knot - order, -1), -1) if j in self._rows]
        return [self._knots[j] for j in used], [row - self._rows[j] for j in used]


def spread(values: Sequence[float], back: Sequence[int]) -> tuple[float, ...]:
    """What multiplies the outputs of a row and those before it, newest first: values at these places, and zeros."""
    out = [0.0] * (max(back) + 1)
    for j, value in zip(back, values, strict=True):
        out[j] = value
    return tuple(out)
