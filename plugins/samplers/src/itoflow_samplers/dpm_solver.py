r"""DPM-Solver++: x0 along an exponential integrator in the log signal-to-noise ratio.

With l = log(alpha / sigma), h = l_1 - l_0 and D_j the estimates of x0, newest first, the exact step is

    x_1 = (sigma_1/sigma_0) x_0 + sigma_1 int e^l x0 dl.                                               (1)

    multistep 2    r = (l_0 - l_-1) / h,   D = (1 + 1/(2r)) D_0 - 1/(2r) D_-1,
                   x_1 = (sigma_1/sigma_0) x_0 - alpha_1 (e^-h - 1) D                                  (2)
    multistep 3    (1) with the parabola through the last three estimates
    singlestep 2   u = (sigma_s/sigma_0) x_0 - alpha_s (e^(-r h) - 1) D_0 at l_s = l_0 + r h, r = 1/2,
                   D = (1 - 1/(2r)) D_0 + 1/(2r) x0(u),   then as (2)                                  (3)
    singlestep 3   stages at r_1 = 1/3 and r_2 = 2/3                                                   (4)

A step from where no signal is left (l_0 = -inf) is the exact one for constant x0, DDIM.

The authors' code multiplies the second difference of multistep 3 by half of what (1) gives, which leaves order 2;
here it is (1).

References:
    DPM-Solver++ (Lu et al., 2022), https://arxiv.org/abs/2211.01095, proposition 4.1, algorithms 1 and 2.
    DPM-Solver (Lu et al., 2022), https://arxiv.org/abs/2206.00927, algorithm 2, of which (4) is the form in x0.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from itoflow import GaussianProcess, ProcessSpec, Row, Table
from itoflow.process import ALPHA_ZERO
from itoflow_samplers.frames import Frame, Point, points
from itoflow_samplers.history import History, spread
from itoflow_samplers.multistep import STARTS, adams_row
from itoflow_samplers.ode import runge_kutta_rows
from itoflow_samplers.ordered import OrderedSampler

DATA = Frame("data")


class DPMSolver(OrderedSampler):
    """Equations (2) to (4). Multistep: one evaluation a step; singlestep: as many as the order."""

    requires: ClassVar[type] = GaussianProcess

    order: Literal[2, 3] | None = None
    """None is 2."""
    method: Literal["multistep", "singlestep"] = "multistep"
    """Whether a step uses the estimates of the steps before it, or of stages of its own."""
    start: Literal["ramp", "runge-kutta"] = "ramp"
    """Of multistep: the first steps by the methods of lower order, or Runge-Kutta steps of its own order, in x0."""

    def needed_steps(self) -> int:
        """As many as the order for multistep."""
        return super().needed_steps() if self.method == "multistep" else 1

    def table(self, process: ProcessSpec) -> Table:
        """One row a network evaluation."""
        times, ending = self.times(process)
        knots, order = points(process, times), self.order or 2
        rows = self._multistep(process, knots, order) if self.method == "multistep" else []
        if self.method == "singlestep":
            rows = [row for now, after in pairwise(knots) for row in singlestep_rows(process, now, after, order)]
        return Table((*rows, *ending))

    def _multistep(self, process: ProcessSpec, knots: list[Point], order: int) -> list[Row]:
        rows, history = list[Row](), History(knots)
        for i, (now, after) in enumerate(pairwise(knots)):
            history.add(i, len(rows))
            if self.start == "runge-kutta" and i < order - 1 and now.alpha > ALPHA_ZERO and after.sigma > 0:
                rows += runge_kutta_rows(process, DATA, now, after, STARTS[order])
                continue
            nodes, back = history.last(order, i, len(rows))
            if len(nodes) == 2 and nodes[-1].alpha > ALPHA_ZERO:
                rows.append(_second_order(nodes[1], now, after, back[1]))
            else:
                rows.append(adams_row(process, DATA, "log-snr", now, after, nodes, back))
        return rows


def _second_order(before: Point, now: Point, after: Point, back: int) -> Row:
    """Equation (2); the older estimate is `back` rows ago."""
    h, ratio = after.half_log_snr - now.half_log_snr, after.sigma / now.sigma
    whole = -after.alpha * math.expm1(-h)
    slope = whole * h / (now.half_log_snr - before.half_log_snr) / 2
    return Row(now.t, out="x0", a=ratio, b=spread((whole + slope, -slope), (0, back)))


def singlestep_rows(process: ProcessSpec, now: Point, after: Point, order: int) -> list[Row]:
    """Equations (3) and (4): `order` rows, or one where no signal is left."""
    if now.alpha <= ALPHA_ZERO:
        return [adams_row(process, DATA, "own", now, after, [now], [0])]
    assert isinstance(process, GaussianProcess)
    h, alpha, ratio = after.half_log_snr - now.half_log_snr, after.alpha, after.sigma / now.sigma
    whole = -alpha * math.expm1(-h)
    shares = (1 / 2,) if order == 2 else (1 / 3, 2 / 3)
    times = process.log_snr_inverse(torch.tensor([2 * (now.half_log_snr + r * h) for r in shares], dtype=torch.float64))
    first, *rest = points(process, times.tolist())
    rows = [Row(now.t, out="x0")]
    held = (-first.alpha * math.expm1(-shares[0] * h),)
    if order == 2:
        b = (whole, 0.0)  # 1 / (2 r) = 1
        return [*rows, Row(first.t, out="x0", p=first.sigma / now.sigma, q=held, a=ratio, b=b)]
    second = rest[0]
    bend = second.alpha * 2 * (math.expm1(-2 / 3 * h) / (2 / 3 * h) + 1)  # r_2 / r_1 = 2
    q = (bend, -second.alpha * math.expm1(-2 / 3 * h) - bend)
    slope = alpha * 1.5 * (math.expm1(-h) / h + 1)
    return [
        *rows,
        Row(first.t, out="x0", p=first.sigma / now.sigma, q=held),
        Row(second.t, out="x0", p=second.sigma / now.sigma, q=q, a=ratio, b=(slope, 0.0, whole - slope)),
    ]
