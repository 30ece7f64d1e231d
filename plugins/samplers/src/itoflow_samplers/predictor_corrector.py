r"""Predictor-corrector sampling: after each step of a reverse-time predictor, Langevin steps at the new time.

    x <- x + e score(x, t) + sqrt(2 e) z,     e = 2 m^2 (r |z| / |score|)^2

with r the signal-to-noise ratio and m the forward transition's scale of the step (1 for VE). The paper takes the mean
of both norms over the batch, so that a sample depends on its batch. With their expected values for D independent
values of noise, sqrt(D) and sqrt(D) / sigma, it does not, and e = 2 (m r sigma)^2: a row of a table like any other.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, algorithms 2-5 and appendix G.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, ClassVar, Self

from annotated_types import Ge, Gt
from torch import Tensor

from itoflow import Field, GaussianProcess, OptionError, ProcessSpec, Row, Sampler, Table, TableSampler
from itoflow.loop import Callback, run_table
from itoflow.noise import Generators
from itoflow.process import ALPHA_ZERO
from itoflow_samplers.sde import ReverseDiffusion
from itoflow_samplers.transitions import transitions


class PredictorCorrector(Sampler):
    """A one-step predictor, and `corrector_steps` Langevin steps at each new time but the last.

    1 + corrector_steps network evaluations a step; one from where no signal is left, as m = 0 there.
    """

    requires: ClassVar[type] = GaussianProcess

    predictor: TableSampler = ReverseDiffusion()
    """A sampler of one row a step: reverse-diffusion, ancestral, euler-maruyama, ...; it sets steps and grid."""
    snr: Annotated[float, Gt(0)] = 0.16
    """r, the signal-to-noise ratio of the corrector."""
    corrector_steps: Annotated[int, Ge(0)] = 1
    """Langevin steps after each predictor step."""

    def with_steps(self, steps: int) -> Self:
        """The same corrector with a predictor of that many steps."""
        return self.replace(predictor=self.predictor.with_steps(steps))

    def check(self, process: ProcessSpec) -> None:
        """Refuse a predictor that looks back, or takes more than one evaluation a step: no time at which to correct."""
        super().check(process)
        self.predictor.check(process)
        self.tabulated(process)

    def starts_at(self, process: ProcessSpec) -> float:
        """When the predictor does."""
        return self.predictor.starts_at(process)

    def needs_score(self, process: ProcessSpec) -> bool:
        """Langevin steps do, and so may the predictor."""
        return self.corrector_steps > 0 or self.predictor.needs_score(process)

    def tabulated(self, process: ProcessSpec, data_std: float | None = None) -> Table:
        """The predictor's rows, each but the last followed by its correctors; made once."""
        return _corrected(self, process, data_std)

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
        table, compile = self.tabulated(field.process, field.data_std), self.predictor.compile
        name = type(self).__name__
        return run_table(table, field, x, cond, generator=generator, callback=callback, name=name, compile=compile)


@lru_cache(maxsize=128)
def _corrected(sampler: PredictorCorrector, process: ProcessSpec, data_std: float | None) -> Table:
    rows = sampler.predictor.tabulated(process, data_std).rows
    if any(row.q or len(row.b) > 1 for row in rows):
        raise OptionError(
            f"PredictorCorrector needs a predictor of one evaluation a step; {type(sampler.predictor).__name__} takes "
            "more, or looks back. Use 'reverse-diffusion', 'ancestral', 'euler-maruyama', 'euler' or 'ddim'."
        )
    found = list[Row]()
    for row, step in zip(rows, transitions(process, [row.t for row in rows]), strict=False):
        found.append(row)
        if step.alpha_t > ALPHA_ZERO:
            found += [langevin(step.s, step.sigma_s, step.m * sampler.snr)] * sampler.corrector_steps
    return Table((*found, rows[-1]))


def langevin(t: float, sigma: float, r: float) -> Row:
    """The step at t with m r = `r`; score = -eps / sigma."""
    e = 2 * (r * sigma) ** 2
    return Row(t, out="eps", b=(-e / sigma,), c=math.sqrt(2 * e))
