r"""Stochastic Adams: an exact stochastic step, with what the network predicts a polynomial through the last values.

Predictor and corrector interpolate the last values of F, the corrector with the one at the new time among them; both
use the same noise, and one network evaluation serves both (PEC):

    x^p_1 = kept x_0 + sum_j w^p_j F_j + std z,    F_new = F(x^p_1, t_1),
    x_1   = kept x_0 + w^c_new F_new + sum_j w^c_j F_j + std z.

SA-Solver has F = x0, a polynomial in l = log(alpha / sigma); in theta = arctan(sigma / alpha) instead, a start without
signal is a point like any other. `StochasticAdams` steps in the frame v, where x changes by F dtheta, on times of its
own that spread theta evenly but for more of them near the data,

    theta_i = theta_min + (theta_max - theta_min) (1 - i / n)^1.2,   theta = arctan(sigma / (c alpha)).        (1)

Grids made for log-SNR or sigma have most of theta in two or three steps where they are short, and a polynomial through
values that lie close together before such a step is far off. `itoflow_samplers.stochastic` has both steps.

References:
    SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models (Xue et al., 2023),
    https://arxiv.org/abs/2309.05019, equations 14 to 17 and algorithm 1.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from pydantic import FiniteFloat

from itoflow import GaussianProcess, ProcessSpec, Row, Table
from itoflow.sampler import GridOption
from itoflow_samplers.frames import Frame, Point, points
from itoflow_samplers.history import followed, newest
from itoflow_samplers.stochastic import AngleStep, ExactStep, LogSNRStep, StrongSampler, Variable

_BEND = 1.2
"""The exponent of (1)."""


class StochasticMultistep(StrongSampler):
    """The rows of both methods; one network evaluation a step."""

    order: Annotated[int, Ge(1), Le(4)] | None = None
    """Values that the predictor interpolates; None is 2, or as many as the steps."""
    corrector: Annotated[int, Ge(0), Le(4)] = 2
    """Values that the corrector interpolates, the new one included; 0 is none."""

    @abstractmethod
    def step(self, start: Point, end: Point, strength: float) -> ExactStep:
        """The exact step between two points."""

    def call(self, at: Point) -> Row:
        """The row of a call there, moving nothing, with F in the history, up to a factor that the weights have."""
        return Row(at.t, out="x0")

    def table(self, process: ProcessSpec) -> Table:
        """One row a step, the first orders rising with the values known."""
        order = self.order or min(2, self.steps)
        times, ending = self.times(process)
        knots = points(process, times)
        count = len(knots) - 1
        if not self.corrector or not count:
            return Table((*(self._predict(knots, i, order) for i in range(count)), *ending))
        rows = [self.call(knots[0])]
        rows += [self._correct(knots, i, order) for i in range(count if ending else count - 1)]
        last = rows.pop()
        if ending:
            return Table((*rows, replace(last, out="x0", f=0.0, a=0.0, b=(1.0,), c=0.0)))
        return Table((*rows, self._followed(last, knots, order)))

    def _predict(self, knots: list[Point], i: int, order: int) -> Row:
        """Step i without a corrector."""
        step = self.step(knots[i], knots[i + 1], self.strength)
        b = step.weights(newest(knots, i, order))
        return replace(self.call(knots[i]), a=step.kept, b=b, c=step.std, clock=self.stretch(step))

    def _correct(self, knots: list[Point], i: int, order: int) -> Row:
        """The call at the end of step i: its input is the prediction, its output corrects the state."""
        step = self.step(knots[i], knots[i + 1], self.strength)
        q, b = step.weights(newest(knots, i, order)), step.weights(newest(knots, i + 1, self.corrector))
        a, c = step.kept, step.std
        return replace(self.call(knots[i + 1]), a=a, b=b, c=c, p=a, q=q, r=c, clock=self.stretch(step))

    def _followed(self, row: Row, knots: list[Point], order: int) -> Row:
        """The row before the last step with that step put into it, of strength 0: one row has one noise."""
        step = self.step(knots[-2], knots[-1], 0.0)
        return followed(row, step.kept, step.weights(newest(knots, len(knots) - 2, order)))


class SASolver(StochasticMultistep):
    """SA-Solver: x0 as a polynomial."""

    variable: Variable = "angle"
    """In which x0 is interpolated: theta, or the half log-SNR of the paper."""

    def step(self, start: Point, end: Point, strength: float) -> ExactStep:
        """Equation (1) of `itoflow_samplers.stochastic`."""
        return LogSNRStep(start, end, strength, self.variable)


class StochasticAdams(StochasticMultistep):
    """F of the frame v as a polynomial in the angle: exact in any step for Gaussian data of standard deviation c.

    No corrector by default, and the exponent of (1): chosen on five mixtures in 2 to 20 dimensions, of which
    tests/benchmarks/stochastic_samplers.py has one, beside a mixture that nothing was chosen on.
    """

    grid: GridOption = "auto"
    """Time grid: equation (1) (`auto`), a named one, or the times themselves, decreasing."""

    corrector: Annotated[int, Ge(0), Le(4)] = 0
    """Values that the corrector interpolates, the new one included; 0 is none."""
    data_std: Annotated[FiniteFloat, Gt(0)] | None = None
    """c, the standard deviation of the data, data units; None is what the field says, or 1 for a table by itself."""

    def open_ended(self, process: ProcessSpec) -> bool:
        """So is (1)."""
        return self.grid == "auto" or super().open_ended(process)

    def grid_times(self, process: ProcessSpec, knots: int) -> tuple[float, ...]:
        """Equation (1) for `auto`."""
        if self.grid != "auto" or knots == 1:
            return super().grid_times(process, knots)
        assert isinstance(process, GaussianProcess)
        ends = process.t_max, process.t_min
        start, end = (-Frame("v", self.scale).w(at) for at in points(process, ends))
        share = 1 - torch.linspace(0, 1, knots, dtype=torch.float64)[1:-1]
        theta = end + (start - end) * share**_BEND
        inner = process.log_snr_inverse(-2 * (self.scale * theta.tan()).log())
        return ends[0], *inner.tolist(), ends[1]

    def step(self, start: Point, end: Point, strength: float) -> ExactStep:
        """Equation (3) of `itoflow_samplers.stochastic`."""
        return AngleStep(start, end, strength, self.scale)

    def call(self, at: Point) -> Row:
        """F, up to its unit."""
        out, f, _ = Frame("v", self.scale).call(at)
        return Row(at.t, out=out, f=f)
