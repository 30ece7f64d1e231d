"""What a multistep method looks back on: the newest knots, and the rows of a table that call the network there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from itoflow import Row
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


def newest(knots: Sequence[Point], i: int, count: int) -> Sequence[Point]:
    """Where the network has been called after its call at knot i, newest first, `count` at most."""
    return knots[max(i - count + 1, 0) : i + 1][::-1]


def followed(row: Row, kept: float, weights: Sequence[float]) -> Row:
    """The row with a step put into it that keeps so much of the state and needs no further call.

    Arguments:
        weights: of the step, over the outputs of the row and those before it, newest first.
    """
    b = tuple(kept * u + v for u, v in zip_longest(row.b, weights, fillvalue=0.0))
    return replace(row, a=kept * row.a, b=b, c=kept * row.c)


def spread(values: Sequence[float], back: Sequence[int]) -> tuple[float, ...]:
    """What multiplies the outputs of a row and those before it, newest first: values at these places, and zeros."""
    out = [0.0] * (max(back) + 1)
    for j, value in zip(back, values, strict=True):
        out[j] = value
    return tuple(out)
