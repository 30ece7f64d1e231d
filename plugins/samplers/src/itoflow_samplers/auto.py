r"""The default: given a process and a number of network evaluations, the times, the order and the coefficients.

Every Gaussian process has the same flow up to scale and time (`itoflow_samplers.frames`), so a method that is good on
one is good on all. With theta = arctan(s / c), s = sigma / alpha, c the standard deviation of the data, and n
evaluations at the times of the grid `optimal`, a step in the frame `v` is

    z_(k+1) = z_k + sum_j [beta_kj + (theta_k - theta_(k+1)) delta_kj] F_(k-j),   sum_j delta_kj = 0,        (1)

beta of the exponential Adams method of order 4 (lower at the start) in the variable `bounded`, and delta a stored
correction; from 40 evaluations on, where steps are short, of order 5 and without correction. Times, the variable and
delta were found together, for each n, by descent on the endpoint's error over mixtures of Gaussians of 1 to 256
dimensions (tests/benchmarks/optimal). The last step leads to the data, s = 0, by (1) too; where t_min leaves so much
noise that it is much longer than the one before, it is E[x0 | x]: nothing says how F goes on below t_min.

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
from typing import Annotated, NamedTuple

from annotated_types import Ge, Gt
from torch import Tensor

from itoflow import Field, GaussianProcess, ProcessSpec, Row, Table, TableSampler
from itoflow.loop import Callback
from itoflow.noise import Generators
from itoflow.sampler import GridOption
from itoflow_samplers.frames import Frame, Point, points
from itoflow_samplers.multistep import multistep_rows

Deltas = list[list[float]]
LARGEST = 30.0
"""What sum |beta_kj| may be, in steps: the errors of a network grow by as much."""
LONGEST = 1.5
"""What the last step may be over the one before it in theta; else it is E[x0 | x]."""
ORDER = 4
"""On a grid of the user's, whose steps may be long."""


class Method(NamedTuple):
    """What is stored for one number of evaluations besides the times.

    Arguments:
        order: of the Adams method.
        bend: (a, b) of the variable `bounded`.
        deltas: delta_kj of equation (1), j from 1, a list for each step.
    """

    order: int
    bend: tuple[float, float]
    deltas: Deltas


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
        method = method_of(len(knots) - 1)
        if not corrected:
            method = Method(ORDER, method.bend, [[0.0]] * len(method.deltas))
        frame = Frame("v", std, method.bend)
        rows = _rows(process, knots, frame, method)
        if ending and _leaps(knots, frame):
            rows[-1:] = ending
        return Table(tuple(rows))

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


def _rows(process: ProcessSpec, knots: list[Point], frame: Frame, method: Method) -> list[Row]:
    """Equation (1) along the knots."""
    rows, deltas = [], method.deltas
    for k, (now, after) in enumerate(pairwise(knots)):
        beta = _beta(process, knots, k, frame, method.order)
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


def _leaps(knots: list[Point], frame: Frame) -> bool:
    lengths = [abs(frame.w(after) - frame.w(now)) for now, after in pairwise(knots[-3:])]
    return len(lengths) > 1 and lengths[1] > LONGEST * lengths[0]


def _beta(process: ProcessSpec, knots: list[Point], k: int, frame: Frame, order: int) -> list[float]:
    """beta_kj of the highest order up to this one that weighs its history by no more than `LARGEST`.

    A step that is long beside those before it, as the last is where t_min leaves much noise, extrapolates from them.
    """
    now, after = knots[k], knots[k + 1]
    for nodes in (knots[max(k - i + 1, 0) : k + 1][::-1] for i in range(order, 0, -1)):
        beta = frame.weights(now, after, nodes, "bounded", process)
        if sum(map(abs, beta)) <= LARGEST * abs(sum(beta)):
            return beta
    return beta


def method_of(n: int) -> Method:
    """The method of n evaluations; where it is not stored, that of the nearest number, interpolated along the run."""
    stored = _stored()
    near = min(stored, key=lambda m: (abs(math.log(m / n)), m))
    order, bend, deltas = stored[near]
    depth = max(map(len, deltas), default=0) + 1
    if near == n and deltas:
        return Method(order, bend, deltas)
    if not deltas or near <= depth or n <= depth:
        return Method(order, bend, [[0.0]] * n)
    rest = [_between(deltas, depth + k * (near - 1 - depth) / max(n - 1 - depth, 1)) for k in range(n - depth)]
    return Method(order, bend, [*deltas[:depth], *rest])


def _between(deltas: Deltas, place: float) -> list[float]:
    low = min(int(place), len(deltas) - 2)
    share = place - low
    return [(1 - share) * a + share * b for a, b in zip(deltas[low], deltas[low + 1], strict=True)]


@cache
def _stored() -> dict[int, Method]:
    stored = json.loads(Path(__file__).with_name("auto.json").read_text(encoding="utf-8"))
    return {int(n): Method(e["order"], (e["bend"][0], e["bend"][1]), e["delta"]) for n, e in stored.items()}
