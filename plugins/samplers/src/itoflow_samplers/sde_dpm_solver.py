r"""SDE-DPM-Solver++: the exact stochastic step with x0 held (order 1) or extrapolated to its middle (order 2).

With k = 1, h the step in l = log(alpha / sigma) and r = h_previous / h:

    order 1:  x_1 = (sigma_1/sigma_0) e^(-h) x_0 + alpha_1 (1 - e^(-2h)) x0 + sigma_1 sqrt(1 - e^(-2h)) z,
    order 2:  the same with (1 + 1/(2r)) x0 - 1/(2r) x0_previous for x0 (2M),

and for any strength k with the coefficients of `itoflow_samplers.stochastic`. Order 1 at k = 1 is ancestral sampling.

References:
    DPM-Solver++ (Lu et al., 2022), https://arxiv.org/abs/2211.01095, equations 18 and 19.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

from annotated_types import Ge, Le

from itoflow import ProcessSpec, Row, Table
from itoflow_samplers.frames import points
from itoflow_samplers.stochastic import LogSNRStep, StrongSampler


class SDEDPMSolver(StrongSampler):
    """SDE-DPM-Solver++(2M), or (1); one network evaluation a step."""

    order: Annotated[int, Ge(1), Le(2)] | None = None
    """1 or 2; None is 2, or as many as the steps."""

    def table(self, process: ProcessSpec) -> Table:
        """One row a step; the first is of order 1, as is one after a step without a finite length."""
        order = self.order or 2
        times, ending = self.times(process)
        rows, previous = [], math.inf
        for now, after in pairwise(points(process, times)):
            step = LogSNRStep(now, after, self.strength)
            weight = after.alpha * step.gain
            half = step.h / (2 * previous) if order == 2 and math.isfinite(step.h) else 0.0
            b = (weight * (1 + half), -weight * half) if half else (weight,)
            rows.append(Row(now.t, out="x0", a=step.kept, b=b, c=step.std, clock=self.stretch(step)))
            previous = step.h or math.inf
        return Table((*rows, *ending))
