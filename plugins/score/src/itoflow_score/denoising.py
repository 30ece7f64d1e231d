r"""Denoising score matching, for every Gaussian process and every prediction type.

Draw t, x_t = alpha x0 + sigma eps; regress the network's output y on its target a x0 + b eps:

    loss = w(t) |x0 - x0_hat|^2 / D = w(t) (sigma / det)^2 |y - (a x0 + b eps)|^2 / D,   det = alpha b - sigma a,

with D the number of values of an example. The middle form is what is meant, and it does not depend on the prediction;
the right one is computed, with one float64 number per example.

References:
    A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011).
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, equation 7.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, ClassVar, cast

import torch
from annotated_types import Gt
from torch import Tensor

from itoflow import (
    DataSpec,
    Field,
    GaussianProcess,
    ItoflowWarning,
    Objective,
    Parametrization,
    PathSample,
    ProcessSpec,
)
from itoflow.parametrization import PredictionName
from itoflow.prediction import GaussianPrediction
from itoflow_score.times import ImportanceDensity, TimesName, log_normal_times, uniform_times, unit_numbers
from itoflow_score.weightings import WeightingName, x0_weight

_REACH = 2.5
"""Standard deviations of log-normal times within which log(data_std) is to lie; 0.6% of the draws are beyond."""


class DenoisingScoreMatching(Objective):
    """E_t w(t) |x0 - x0_hat(x_t, t)|^2 / D; its minimiser is the exact field."""

    requires: ClassVar[type] = GaussianProcess

    prediction: PredictionName = "eps"
    """What the network's output means."""
    weighting: WeightingName = "sigma-squared"
    """w(t); see `itoflow_score.weightings`."""
    gamma: Annotated[float, Gt(0)] = 5.0
    """gamma of the weightings min-snr and soft-min-snr."""
    times: TimesName = "uniform"
    """How t is drawn; see `itoflow_score.times`."""
    stratified: bool = False
    """Cover the times evenly within each batch."""
    log_sigma_mean: float = -1.2
    """Mean of log(sigma/alpha) for log-normal times, sigma in data units. The default is EDM's for data of deviation
    0.5; for another one, s, it is log s - 0.5."""
    log_sigma_std: Annotated[float, Gt(0)] = 1.2
    """Standard deviation of log(sigma/alpha) for log-normal times."""

    def parametrization(self, process: ProcessSpec, data: DataSpec) -> Parametrization:
        """The prediction type, with the data's standard deviation.

        Warns, by an `ItoflowWarning`, where log-normal times hardly reach noise as large as the data.
        """
        if self.times == "log-normal":
            self._check_reach(data.std)
        return Parametrization(prediction=self.prediction, data_std=data.std)

    def __call__(
        self,
        field: Field,
        x0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of each example, (B,)."""
        process = cast(GaussianProcess, field.process)
        t, correction = self._draw_times(process, field.data_std, x0, generator)
        loss = self.loss_at(field, process.perturb(x0, t, generator=generator), cond)
        return loss if correction is None else loss * correction.to(loss.dtype)

    def loss_at(self, field: Field, sample: PathSample, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """The loss at given times and noise, (B,): no randomness.

        Arguments:
            sample: x_t with the x0 and eps that made it.
        """
        process = cast(GaussianProcess, field.process)
        prediction = cast(GaussianPrediction, field(sample.x, sample.t, cond))
        one, zero = torch.ones_like(prediction.a), torch.zeros_like(prediction.a)
        return prediction.error(sample, one, zero, self.weight(process, sample.t, field.data_std))

    def weight(self, process: GaussianProcess, t: Tensor, data_std: float = 1.0) -> Tensor:
        """w(t): the shape of t, float64."""
        return x0_weight(self.weighting, process, t, process.kernel(t), gamma=self.gamma, data_std=data_std)

    def _draw_times(
        self, process: GaussianProcess, data_std: float, like: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """t (B,) and what multiplies the loss there, None for 1."""
        u = unit_numbers(like.shape[0], like, generator, stratified=self.stratified)
        match self.times:
            case "uniform":
                return uniform_times(process, u), None
            case "log-normal":
                return log_normal_times(process, u, mean=self.log_sigma_mean, std=self.log_sigma_std), None
            case "importance":
                return _importance(self, process, data_std).times(u)

    def _check_reach(self, data_std: float) -> None:
        mean, std = self.log_sigma_mean, self.log_sigma_std
        if abs(math.log(data_std) - mean) > _REACH * std:
            warnings.warn(
                f"{type(self).__name__}(log_sigma_mean={mean:g}, log_sigma_std={std:g}) trains at noise near "
                f"{math.exp(mean):.2g} data units, and hardly ever beyond that of the data, of standard deviation "
                f"{data_std:g}. For such data use log_sigma_mean={math.log(data_std) - 0.5:.1f}.",
                ItoflowWarning,
                stacklevel=4,
            )


@lru_cache(maxsize=32)
def _importance(objective: DenoisingScoreMatching, process: GaussianProcess, data_std: float) -> ImportanceDensity:
    """Density proportional to w times the least error of x0 that is possible for N(0, data_std^2 I) data."""

    def expected(t: Tensor) -> Tensor:
        k = process.kernel(t)
        variance, signal = k.sigma.square(), (k.alpha * data_std).square()
        return objective.weight(process, t, data_std) * variance * data_std**2 / (variance + signal)

    return ImportanceDensity(process, expected)
