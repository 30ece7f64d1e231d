r"""The default: given a process and a number of network evaluations, the times, the order and the coefficients.

Every Gaussian process has the same flow up to scale and time (`itoflow_samplers.frames`), so a method that is good on
one is good on all. With theta = arctan(s / c), s = sigma / alpha, c the standard deviation of the data, and n
evaluations at the times of the grid `optimal`, a step in the frame `v` is

    z_(k+1) = z_k + sum_j [beta_kj + (theta_k - theta_(k+1)) delta_kj] F_(k-j),   sum_j delta_kj = 0,        (1)

beta of the exponential Adams method of order 4 (lower at the start) in the variable `bounded`, and delta a stored
correction. Times and delta were found together, for each n, by gradient descent on the endpoint's error over mixtures
of Gaussians of 1 to 256 dimensions (tests/benchmarks/optimal). The last step leads to the data, s = 0, by (1) too.

For a number of evaluations that is not stored the coefficients are interpolated along the run, like the times. For a
process that is not Gaussian: Adams of order 2 in the velocity.

References:
    Solving Ordinary Differential Equations I (Hairer, Norsett and Wanner, 1993), section III.1, for the form.
    Align Your Steps (Sabour et al., 2024), https://arxiv.org/abs/2404.14507, for times that are optimised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from itoflow import Field, GaussianProcess, ProcessSpec, Row, Table, TableSampler
from itoflow.loop import Callback
from itoflow.noise import Generators
from itoflow.sampler import GridOption
from itoflow_samplers.frames import Frame, Point, points
from itoflow_samplers.multistep import multistep_rows

ORDER = 4
Deltas = list[list[float]]


class Auto(TableSampler):
    """Equation (1): `steps` network evaluations, one a step."""

    steps: Annotated[int, Ge(1)] = 32
    """Number of network evaluations."""
    grid: GridOption = "auto"
    """`auto` is `optimal`, for which the corrections are; on another grid there are none."""
    data_std: Annotated[float, Gt(0)] | None = None  # type: ignore[assignment]
    """Standard deviation of the data, c, data units; None is what the field says, or 1 for a table by itself."""

    def table(self, process: ProcessSpec) -> Table:
        """One row a step."""
        if not isinstance(process, GaussianProcess):
            times, ending = self.replace(data_std=1.0).times(process)
            return Table((*multistep_rows(process, times, Frame("velocity"), "own", 2), *ending))
        std = self.data_std or 1.0
        corrected = self.grid in ("auto", "optimal")
        sampler = self.replace(data_std=std, grid="optimal" if corrected else self.grid)
        times, ending = sampler.times(process)
        knots = points(process, times)
        if ending:
            knots.append(Point(0.0, alpha=1.0, sigma=0.0))
        bend, deltas = corrections(len(knots) - 1)
        frame = Frame("v", std, bend)
        if not corrected:
            deltas = [[0.0]] * (len(knots) - 1)
        return Table(tuple(_rows(process, knots, frame, deltas)))

    def __call__(
        self,
        field: Field,
        x: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """x at data time from x at prior time; see `itoflow.Sampler`."""
        if self.data_std is None:
            chosen = self.replace(data_std=field.data_std)
            return chosen(field, x, cond, generator=generator, callback=callback)
        return super().__call__(field, x, cond, generator=generator, callback=callback)


def _rows(process: ProcessSpec, knots: list[Point], frame: Frame, deltas: Deltas) -> list[Row]:
    """Equation (1) along the knots."""
    rows = []
    for k, (now, after) in enumerate(pairwise(knots)):
        nodes = knots[max(k - ORDER + 1, 0) : k + 1][::-1]
        beta = frame.weights(now, after, nodes, "bounded", process)
        h, n = frame.w(after) - frame.w(now), frame.scale(after)
        delta = [-sum(deltas[k]), *deltas[k]]
        size = max(len(beta), len(delta)) if any(deltas[k]) else len(beta)
        b = []
        for j in range(min(size, k + 1)):
            weight = (beta[j] if j < len(beta) else 0.0) + (h * delta[j] if j < len(delta) else 0.0)
            b.append(n * weight * frame.call(knots[k - j])[2])
        out, f, _ = frame.call(now)
        rows.append(Row(now.t, out=out, a=n / frame.scale(now), b=tuple(b), f=f))
    return rows


def corrections(n: int) -> tuple[tuple[float, float], Deltas]:
    """(a, b) of `bounded` and delta[k] of n evaluations; interpolated along the nearest number that is stored."""
    stored = _stored()
    near = min(stored, key=lambda m: (abs(math.log(m / n)), m))
    bend, deltas = stored[near]
    if near == n:
        return bend, deltas
    depth = max(map(len, deltas)) + 1
    start = list(deltas[:depth])
    if near <= depth or n <= depth:
        return bend, [[0.0]] * n
    rest = [_between(deltas, depth + k * (near - 1 - depth) / max(n - 1 - depth, 1)) for k in range(n - depth)]
    return bend, [*start, *rest]


def _between(deltas: Deltas, place: float) -> list[float]:
    low = min(int(place), len(deltas) - 2)
    share = place - low
    return [(1 - share) * a + share * b for a, b in zip(deltas[low], deltas[low + 1], strict=True)]


@cache
def _stored() -> dict[int, tuple[tuple[float, float], Deltas]]:
    stored = json.loads(Path(__file__).with_name("auto.json").read_text(encoding="utf-8"))
    return {int(n): ((entry["bend"][0], entry["bend"][1]), entry["delta"]) for n, entry in stored.items()}
