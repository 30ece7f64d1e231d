r"""The default: given a process and a number of network evaluations, the times, the order and the coefficients.

Every Gaussian process has the same flow up to scale and time (`itoflow_samplers.frames`), so a method that is good on
one is good on all. With theta = arctan(s / c), s = sigma / alpha, c the standard deviation of the data, and n
evaluations at the times of the grid `optimal`, a step in the frame `v` is

    z_(k+1) = z_k + sum_j [beta_kj + (theta_k - theta_(k+1)) delta_kj] F_(k-j),   sum_j delta_kj = 0.       (1)

beta combines predictor and corrector, as UniPC does: the exponential Adams step of order p in the variable `bounded`,
plus the correction of the step before, which is the implicit step of order p + 1 over it less its predictor:

    beta_kj = predictor_kj + corrector_(k-1)j - predictor_(k-1)(j-1),   the corrector's F_k first.          (2)

So z is what is predicted, at which F is taken, and its corrected value is never formed. delta is a stored correction;
from 40 evaluations on, where steps are short, there is none. Times, the variable and delta were found together, for
each n, by descent on the endpoint's error over mixtures of Gaussians of 1 to 256 dimensions and of means up to their
deviation, for most n from 7 on over small networks too (tests/benchmarks/optimal). Where t_min leaves noise, there is
no delta from 23 on, and a share of the times is uniform in log s (`itoflow.grids.evened`): what a network learns varies
where no exact law does. For a number of evaluations that is not stored the coefficients are interpolated along the run,
like the times.

The last step leads to the data, s = 0, by (1) too. Where t_min leaves so much noise that a call would be below it, or
the times are evened, the last call is at t_min, and its E[x0 | x] is the end, as nothing says how F goes on below.

A network that predicts noise (or the score) has an error in x0 that is s times as large: at high noise F varies as log
s does, whatever the data. For it the times are uniform in log s, the variable is like log s, and there is no delta.

For a process that is not Gaussian: Adams of order 2 in the velocity.

References:
    Solving Ordinary Differential Equations I (Hairer, Norsett and Wanner, 1993), section III.1, for the form.
    UniPC (Zhao et al., 2023), https://arxiv.org/abs/2302.04867, for (2).
    Align Your Steps (Sabour et al., 2024), https://arxiv.org/abs/2404.14507, for times that are optimised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Annotated, NamedTuple

from annotated_types import Ge
from torch import Tensor

from itoflow import Field, GaussianProcess, ProcessSpec, Row, Table, TableSampler
from itoflow.grids import between, evened, run_length
from itoflow.loop import Callback
from itoflow.noise import Generators
from itoflow.sampler import GridOption
from itoflow_samplers.frames import Frame, Point, points
from itoflow_samplers.history import newest
from itoflow_samplers.multistep import multistep_rows

Deltas = list[list[float]]
LARGEST = 8.0
"""The most that sum |beta_kj| / |sum beta_kj| may be, by which errors of a network can grow."""
ORDER, LOW_ORDER, FEW = 3, 2, 20
"""Without corrections: p, and p for fewer evaluations than `FEW`, whose steps are long."""
SMOOTH, MANY = 48.0, 40
"""For times that are `evened`: the evaluations whose method has no corrections, and from which its order is taken."""
WIDER = 4.0
"""How far the variable's bend lies beyond the times, without corrections."""


class Method(NamedTuple):
    """What is stored for one number of evaluations besides the times.

    Arguments:
        order: p of the predictor.
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
    """`auto` is `optimal`, for which the corrections are, or for noise `log-snr`; without corrections, as any other."""
    predicts_noise: bool | None = None
    """Whether the network predicts noise, or the score; None is what the field says, or false for a table by itself."""

    def table(self, process: ProcessSpec) -> Table:
        """One row a step."""
        if not isinstance(process, GaussianProcess):
            times, ending = self.times(process)
            return Table((*multistep_rows(process, times, Frame("velocity"), "own", 2), *ending))
        std = self.scale
        chosen = ("log-snr" if self.predicts_noise else "optimal") if self.grid == "auto" else self.grid
        sampler = self.replace(grid=chosen)
        times, ending = sampler.times(process)
        knots = points(process, times)
        if chosen == "optimal":
            if ending and sampler.open_ended(process):
                knots, ending = [*knots, Point(0.0, alpha=1.0, sigma=0.0)], ()
            steps = len(knots) - 1
            length = run_length(process, steps, std) if knots[-1].sigma > 0 else float(steps)
            if evened(process, steps):
                method = method_of(max(length, SMOOTH), steps)
                method = method._replace(order=ORDER if steps < MANY else method.order)
            else:
                method = method_of(length, steps)
        else:
            method = plain(knots, std)
        return Table((*_rows(process, knots, Frame("v", std, method.bend), method), *ending))

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
        self.check_call(field, x, callback)
        if self.predicts_noise is None:
            known = self.replace(predicts_noise=field.predicts_noise)
            return known(field, x, cond, generator=generator, callback=callback)
        return super().__call__(field, x, cond, generator=generator, callback=callback)


def _rows(process: ProcessSpec, knots: list[Point], frame: Frame, method: Method) -> list[Row]:
    """Equation (1) along the knots."""
    rows, missed = [], [0.0]
    for k, (now, after) in enumerate(pairwise(knots)):
        predictor, corrector = _beta(process, knots, k, frame, method.order)
        h, n = frame.w(after) - frame.w(now), frame.scale(after)
        delta = [h * d for d in (-sum(method.deltas[k]), *method.deltas[k])]
        weights = [sum(parts) for parts in zip_longest(predictor, missed, delta, fillvalue=0.0)][: k + 1]
        while len(weights) > 1 and weights[-1] == 0:
            weights.pop()
        missed = [c - p for c, p in zip_longest(corrector, [0.0, *predictor], fillvalue=0.0)]
        b = [n * weight * frame.call(knots[k - j])[2] for j, weight in enumerate(weights)]
        out, f, _ = frame.call(now)
        rows.append(Row(now.t, out=out, a=n / frame.scale(now), b=tuple(b), f=f))
    return rows


def _beta(
    process: ProcessSpec, knots: list[Point], k: int, frame: Frame, order: int
) -> tuple[list[float], list[float]]:
    """Predictor and corrector of the highest order up to this one that weigh their history by no more than `LARGEST`.

    A step that is long beside those before it, as the last is where t_min leaves much noise, extrapolates from them.
    """
    now, after = knots[k], knots[k + 1]
    for nodes in (newest(knots, k, i) for i in range(order, 0, -1)):
        found = [frame.weights(now, after, places, "bounded", process) for places in (nodes, [after, *nodes])]
        if all(sum(map(abs, beta)) <= LARGEST * abs(sum(beta)) for beta in found):
            break
    return found[0], found[1]


def plain(knots: list[Point], std: float) -> Method:
    """Without corrections, the variable like log s between the times."""
    s = [at.s / std for at in knots if 0 < at.s < math.inf] or [1.0]
    order = ORDER if len(knots) >= FEW else LOW_ORDER
    return Method(order, (s[-1] / WIDER, s[0] * WIDER), [[0.0]] * (len(knots) - 1))


def method_of(n: float, steps: int | None = None) -> Method:
    """The method of n evaluations; where it is not stored, that of the nearest number, interpolated along the run.

    Arguments:
        steps: how many of its steps, from the first.
    """
    steps = int(n) if steps is None else steps
    stored = _stored()
    near = min(stored, key=lambda m: (abs(math.log(m / n)), m))
    order, bend, deltas = stored[near]
    depth = max(map(len, deltas), default=0) + 1
    if near == n and deltas:
        return Method(order, bend, deltas[:steps])
    if not deltas or near <= depth or n <= depth:
        return Method(order, bend, [[0.0]] * steps)
    places = [depth + k * (near - 1 - depth) / max(n - 1 - depth, 1) for k in range(steps - depth)]
    columns = list(zip(*deltas, strict=True))
    rest = [[between(column, place) for column in columns] for place in places]
    return Method(order, bend, [*deltas[:depth], *rest][:steps])


@cache
def _stored() -> dict[int, Method]:
    stored = json.loads(Path(__file__).with_name("auto.json").read_text(encoding="utf-8"))
    return {int(n): Method(e["order"], (e["bend"][0], e["bend"][1]), e["delta"]) for n, e in stored.items()}
