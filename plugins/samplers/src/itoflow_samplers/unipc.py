r"""UniPC: a predictor of order p and a corrector of order p + 1, one network evaluation a step.

The predictor carries the corrected state from t_0 to t_1, the network is called there, and the corrector goes over the
same step again with the new estimate among those it interpolates. With l = log(alpha / sigma), h = l_1 - l_0,
r_k = (l_-k - l_0) / h and D_k the estimates of x0, both are

    x_1 = (sigma_1/sigma_0) x_0 - alpha_1 [(e^-h - 1) D_0 + B(h) sum_k rho_k (D_k - D_0) / r_k],           (1)

the corrector's sum with the estimate at t_1, r = 1. The rho that solve the order conditions make (1) the exponential
Adams step in l, whatever B is; alone rho = 1/2, which the paper puts for the predictor of order 2 and the corrector of
order 2 (p = 1), depends on it:

    bh1  B = -h        bh2  B = e^-h - 1.                                                                  (2)

A step from where no signal is left (l_0 = -inf) is DDIM, uncorrected.

References:
    UniPC (Zhao et al., 2023), https://arxiv.org/abs/2302.04867, algorithms 1 and 2, section 3 and appendix A for x0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from itoflow import GaussianProcess, ProcessSpec, Row, Table
from itoflow.process import ALPHA_ZERO
from itoflow_samplers.dpm_solver import DATA
from itoflow_samplers.frames import Point, points
from itoflow_samplers.history import History, followed, spread
from itoflow_samplers.multistep import STARTS
from itoflow_samplers.ode import runge_kutta_rows
from itoflow_samplers.ordered import OrderedSampler


class UniPC(OrderedSampler):
    """Equation (1); the order of its error is the predictor's plus one."""

    requires: ClassVar[type] = GaussianProcess

    order: Annotated[int, Ge(1), Le(3)] | None = None
    """p of the predictor; None is 3, or as many as the steps."""
    variant: Literal["bh1", "bh2"] = "bh2"
    """B of equation (2)."""
    start: Literal["ramp", "runge-kutta"] = "ramp"
    """The first p - 1 steps: with the history there is, or Runge-Kutta steps of order 3 in x0.

    Either way a run holds p + 4 tensors of the sample's size.
    """

    def table(self, process: ProcessSpec) -> Table:
        """One row a step: it predicts, calls the network and corrects; the last prediction is not corrected."""
        times, ending = self.times(process)
        knots, order = points(process, times), self.order or min(3, self.steps)
        rows, history = [Row(times[0], out="x0")], History(knots)
        history.add(0, 0)
        for i, (now, after) in enumerate(pairwise(knots)):
            if self.start == "runge-kutta" and i < order - 1 and now.alpha > ALPHA_ZERO and after.sigma > 0:
                rows[-1:] = runge_kutta_rows(process, DATA, now, after, STARTS[order + 1])
                rows.append(Row(after.t, out="x0"))
                history.add(i + 1, len(rows) - 1)
                continue
            nodes, back = history.last(order, i, len(rows) - 1)
            predicted = spread(self._step(process, now, after, nodes), back)
            ratio = after.sigma / now.sigma
            if i == len(knots) - 2 and not ending:
                rows[-1] = followed(rows[-1], ratio, predicted)
                break
            corrected: tuple[float, ...] = (0.0, *predicted)
            if now.alpha > ALPHA_ZERO:
                corrected = spread(self._step(process, now, after, [after, *nodes]), [0, *(j + 1 for j in back)])
            rows.append(Row(after.t, out="x0", p=ratio, q=predicted, a=ratio, b=corrected))
            history.add(i + 1, len(rows) - 1)
        if ending:
            rows[-1] = replace(rows[-1], a=0.0, b=(1.0,))
        return Table(tuple(rows))

    def _step(self, process: ProcessSpec, now: Point, after: Point, nodes: Sequence[Point]) -> list[float]:
        """The coefficients of (1) for the estimates at the nodes, of which `now` is one."""
        h = after.half_log_snr - now.half_log_snr
        others = [at for at in nodes if at is not now]
        if len(others) != 1 or not math.isfinite(h + others[0].half_log_snr):
            weights = DATA.weights(now, after, nodes, "log-snr", process)
            return [after.sigma * w for w in weights]
        b = -h if self.variant == "bh1" else math.expm1(-h)
        other = -after.alpha * b / 2 * h / (others[0].half_log_snr - now.half_log_snr)
        held = -after.alpha * math.expm1(-h) - other
        return [held if at is now else other for at in nodes]
