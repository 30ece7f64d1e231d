r"""Predictor-corrector sampling: after each step of a reverse-time predictor, Langevin steps at the new time.

    x <- x + e score(x, t) + sqrt(2 e) z,     e = 2 m^2 (r |z| / |score|)^2

with r the signal-to-noise ratio and m the forward transition's scale of the step (1 for VE). The paper takes the mean
of both norms over the batch, so that a sample depends on its batch. With their expected values for D independent
values of noise, sqrt(D) and sqrt(D) / sigma, it does not, and e = 2 (m r sigma)^2.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, algorithms 2-5 and appendix G.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, ClassVar, Literal, Self, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from itoflow import Field, GaussianProcess, NumericalError, OptionError, ProcessSpec, Row, Sampler, Step, TableSampler
from itoflow.loop import Callback, x0_estimate
from itoflow.noise import Generators, normal
from itoflow_samplers.sde import ReverseDiffusion
from itoflow_samplers.transitions import transitions


class PredictorCorrector(Sampler):
    """A one-step predictor, and `corrector_steps` Langevin steps at each new time but the last.

    1 + corrector_steps network evaluations a step.
    """

    requires: ClassVar[type] = GaussianProcess

    predictor: TableSampler = ReverseDiffusion()
    """A sampler of one row a step: reverse-diffusion, ancestral, euler-maruyama, ...; it sets steps and grid."""
    snr: Annotated[float, Gt(0)] = 0.16
    """r, the signal-to-noise ratio of the corrector."""
    corrector_steps: Annotated[int, Ge(0)] = 1
    """Langevin steps after each predictor step."""
    norms: Literal["expected", "batch"] = "expected"
    """Norms in the step size: their expected values, or the means over the batch as in the paper."""

    def with_steps(self, steps: int) -> Self:
        """The same corrector with a predictor of that many steps."""
        return self.replace(predictor=self.predictor.with_steps(steps))

    def check(self, process: ProcessSpec) -> None:
        """Refuse a predictor that takes more than one evaluation a step, which leaves no time at which to correct."""
        super().check(process)
        self.predictor.check(process)
        for row in self.predictor.table(process).rows:
            if row.p != 1 or row.q or row.r or len(row.b) > 1:
                raise OptionError(
                    f"PredictorCorrector needs a predictor of one evaluation a step; {type(self.predictor).__name__} "
                    "takes more. Use 'reverse-diffusion', 'ancestral', 'euler-maruyama', 'euler' or 'ddim'."
                )

    def needs_score(self, process: ProcessSpec) -> bool:
        """Langevin steps do, and so may the predictor."""
        return self.corrector_steps > 0 or self.predictor.needs_score(process)

    @torch.no_grad()
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
        process = cast(GaussianProcess, field.process)
        self.check(process)
        rows = self._rows(process, field.data_std)
        evaluate = field.plan([row for row, _, _ in rows], x, cond)
        for i, (row, sigma, m) in enumerate(rows):
            z = normal(x.shape, like=x, generator=generator) if row.c or sigma else None
            before, h = x, evaluate(i, x)
            if sigma:
                x = self._langevin(x, h, cast(Tensor, z), sigma, m)
            else:
                x = row.a * x + sum(row.b) * h + (0.0 if z is None else row.c * z)
            if not bool(torch.isfinite(x).all()):
                kind = "corrector" if sigma else type(self.predictor).__name__
                raise NumericalError(
                    f"Sampler PredictorCorrector got values that are not finite at step {i + 1} of {len(rows)} "
                    f"({kind}), t = {row.t:.6g}. Lower snr, or raise the number of steps."
                )
            if callback is not None:
                callback(Step(i, len(rows), row.t, x, partial(x0_estimate, field, row, before, h)))
        return x

    def _rows(self, process: GaussianProcess, data_std: float) -> list[tuple[Row, float, float]]:
        """Predictor rows, and corrector rows with their sigma and m; sigma = 0 marks a predictor."""
        table = self.predictor.tabulated(process, data_std).rows
        rows = []
        for row, step in zip(table, transitions(process, [row.t for row in table]), strict=False):
            corrector = Row(step.s, out="eps")
            rows += [(row, 0.0, 0.0), *[(corrector, step.sigma_s, step.m)] * self.corrector_steps]
        return [*rows, (table[-1], 0.0, 0.0)]

    def _langevin(self, x: Tensor, eps: Tensor, z: Tensor, sigma: float, m: float) -> Tensor:
        """One Langevin step with score = -eps / sigma."""
        ratio: Tensor | float = 1.0
        if self.norms == "batch":
            ratio = z.flatten(1).norm(dim=1).mean() / eps.flatten(1).norm(dim=1).mean()
        size = 2 * (m * self.snr * sigma * ratio) ** 2
        return x - size / sigma * eps + (2 * size) ** 0.5 * z
