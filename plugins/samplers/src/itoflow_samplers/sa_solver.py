r"""SA-Solver: stochastic Adams. The exact stochastic step with x0 a polynomial through the last estimates.

Predictor and corrector are equation (2) of `itoflow_samplers.stochastic`, the corrector with the estimate at the new
time among those it interpolates; both use the same noise, and one network evaluation serves both (PEC):

    x^p_1 = kept x_0 + sum_j w^p_j x0_j + std z,    x0_new = x0(x^p_1, t_1),
    x_1   = kept x_0 + w^c_new x0_new + sum_j w^c_j x0_j + std z.

The paper interpolates in l = log(alpha / sigma). In theta = arctan(sigma / alpha) a start without signal is a point
like any other; tests/benchmarks/stochastic_samplers.py has the weak error of both.

References:
    SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models (Xue et al., 2023),
    https://arxiv.org/abs/2309.05019, equations 14 to 17 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import Annotated

from annotated_types import Ge, Le

from itoflow import ProcessSpec, Row, Table
from itoflow_samplers.stochastic import ExactStep, StrongSampler, Variable
from itoflow_samplers.transitions import transitions


class SASolver(StrongSampler):
    """SA-Solver; one network evaluation a step."""

    order: Annotated[int, Ge(1), Le(4)] | None = None
    """Estimates that the predictor interpolates; None is 2, or as many as the steps."""
    corrector: Annotated[int, Ge(0), Le(4)] = 2
    """Estimates that the corrector interpolates, the new one included; 0 is none."""
    variable: Variable = "angle"
    """In which x0 is interpolated: theta, or the half log-SNR of the paper."""

    def table(self, process: ProcessSpec) -> Table:
        """One row a step, the first orders rising with the estimates known."""
        order = self.order or min(2, self.steps)
        times, ending = self.times(process)
        steps = [self.step(transition) for transition in transitions(process, times)]
        if not self.corrector or not steps:
            return Table((*(self._predict(steps, i, order) for i in range(len(steps))), *ending))
        corrected = [self._correct(steps, i, order) for i in range(len(steps) if ending else len(steps) - 1)]
        rows = [Row(steps[0].transition.t, out="x0"), *corrected]
        last = rows.pop()
        if ending:
            return Table((*rows, replace(last, a=0.0, b=(1.0,), c=0.0)))
        return Table((*rows, self._followed(last, steps, order)))

    def _predict(self, steps: list[ExactStep], i: int, order: int) -> Row:
        """Step i without a corrector."""
        step = steps[i]
        b = step.weights(_newest(steps, i, order), self.variable)
        return Row(step.transition.t, out="x0", a=step.kept, b=b, c=step.std, clock=self.stretch(step))

    def _correct(self, steps: list[ExactStep], i: int, order: int) -> Row:
        """The call at the end of step i: its input is the prediction, its output corrects the state."""
        step = steps[i]
        q = step.weights(_newest(steps, i, order), self.variable)
        b = step.weights([step.end, *_newest(steps, i, self.corrector - 1)], self.variable)
        a, c = step.kept, step.std
        return Row(step.transition.s, out="x0", a=a, b=b, c=c, p=a, q=q, r=c, clock=self.stretch(step))

    def _followed(self, row: Row, steps: list[ExactStep], order: int) -> Row:
        """The row before the last step with that step put into it, of strength 0: one row has one noise."""
        step = ExactStep(steps[-1].transition, 0.0)
        w = step.weights(_newest(steps, len(steps) - 1, order), self.variable)
        b = tuple(step.kept * u + v for u, v in zip_longest(row.b, w, fillvalue=0.0))
        return replace(row, a=step.kept * row.a, b=b, c=step.kept * row.c)


def _newest(steps: list[ExactStep], i: int, count: int) -> list[float]:
    """Where x0 is known before step i, newest first, `count` at most: half log-SNRs."""
    return [step.start for step in steps[max(i - count + 1, 0) : i + 1][::-1]] if count else []
