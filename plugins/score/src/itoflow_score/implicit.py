r"""Implicit score matching: for processes whose transition from data has no closed form.

Denoising score matching needs grad log p(x_t | x0). Where x_t can only be drawn, by simulation, integration by parts
removes the unknown score from the squared error (Hyvarinen, theorem 1): up to a constant in s,

    E |s(x_t, t) - grad log p_t|^2 = E[ |s|^2 + 2 div s ],      loss = w(t) (|s|^2 + 2 div s) / D,       (1)

with D the number of values of an example. So loss differences are those of w |s - grad log p_t|^2 / D, and the loss
itself may be negative. The divergence costs D backward calls, an example; `itoflow_score.sliced` estimates it.

References:
    Estimation of Non-Normalized Statistical Models by Score Matching (Hyvarinen, 2005), theorem 1.
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, section 3.3, for its use where the kernel is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from itoflow import DataSpec, Field, IncompatibleError, Objective, Parametrization, ProcessSpec
from itoflow.divergence import Divergence
from itoflow_score.times import uniform_times, unit_numbers


class ImplicitScoreMatching(Objective):
    """E_t w(t) (|s|^2 + 2 div s) / D at draws of x_t, equation (1); its minimiser is the exact score."""

    weighting: Literal["likelihood", "uniform"] = "likelihood"
    """w(t): g(t)^2, or 1."""
    stratified: bool = False
    """Cover the times evenly within each batch."""

    def parametrization(self, process: ProcessSpec, data: DataSpec) -> Parametrization:
        """The score.

        Raises:
            IncompatibleError: the likelihood weight g^2 is zero, since the process is an ODE.
        """
        middle = torch.tensor((process.t_min + process.t_max) / 2, dtype=torch.float64)
        if self.weighting == "likelihood" and not float(process.diffusion(middle)):
            raise IncompatibleError(
                f"{type(self).__name__}(weighting='likelihood') weights by g(t)^2, and {type(process).__name__} has "
                "g = 0. Use weighting='uniform'."
            )
        return Parametrization(prediction="score", data_std=data.std)

    def __call__(
        self,
        field: Field,
        x0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of each example, (B,); x_t is drawn by `process.perturb`, which simulates if it must."""
        t = uniform_times(field.process, unit_numbers(len(x0), x0, generator, stratified=self.stratified))
        with torch.no_grad():
            x = field.process.perturb(x0, t, generator=generator).x
        return self.loss_at(field, x, t, cond, generator=generator)

    def loss_at(
        self,
        field: Field,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss at given x_t (B, *S) and t (B,): (B,)."""
        probes = self._probes(x, generator)

        def score(wide: Tensor, copies: int) -> Tensor:
            value: Tensor = field(wide, t.repeat(copies), _repeated(cond, copies)).score
            return value

        s, divergence = Divergence(probes, differentiable=True)(score, x)
        weight = field.process.diffusion(t).square() if self.weighting == "likelihood" else torch.ones_like(t)
        return weight.to(x.dtype) * (self._square(s, probes) + 2 * divergence) / x[0].numel()

    def _probes(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Directions (K, B, *S) on which the divergence is estimated; None for all, exactly."""
        return None

    def _square(self, s: Tensor, probes: Tensor | None) -> Tensor:
        """|s|^2: (B,)."""
        return s.flatten(1).square().sum(1)


def _repeated(cond: Mapping[str, Tensor] | None, copies: int) -> dict[str, Tensor]:
    return {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in (cond or {}).items()}
