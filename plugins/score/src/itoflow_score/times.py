r"""At which times an objective looks: maps from a uniform u in (0, 1] to t in [t_min, t_max].

    uniform       t uniform
    log-normal    log(sigma/alpha) ~ N(mean, std^2), mapped to t and clipped to the process's range; a choice of
                  emphasis, not corrected for
    logit-normal  the logit of (t - t_min) / (t_max - t_min) ~ N(mean, std^2), more often in the middle; likewise
    importance    t with density proportional to the loss expected for Gaussian data, divided out again: the same
                  expected loss as uniform times, with less variance where the weighting is steep

Stratified numbers u_i = (i + v_i) / B cover a batch evenly; each is uniform over the batches.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, table 1, for log-normal.
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024),
    https://arxiv.org/abs/2403.03206, section 3.1, for logit-normal.
    Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021),
    https://arxiv.org/abs/2101.09258, section 5.2, for importance.
    Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630, appendix I.1, for even cover.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from itoflow import GaussianProcess, ProcessSpec
from itoflow.noise import uniform

TimesName = Literal["uniform", "log-normal", "importance"]

_KNOTS = 2048


def unit_numbers(n: int, like: Tensor, generator: torch.Generator | None, *, stratified: bool) -> Tensor:
    """u: (n,), float64, each uniform in (0, 1]; one in each n-th part if stratified, in random order."""
    u = uniform(n, like=like, generator=generator)
    if not stratified:
        return u
    device = like.device if generator is None else generator.device
    order = torch.randperm(n, generator=generator, device=device).to(like.device)
    return (order + u) / n


def uniform_times(process: ProcessSpec, u: Tensor) -> Tensor:
    """t: the shape of u, uniform on (t_min, t_max]."""
    return process.t_min + (process.t_max - process.t_min) * u


def logit_normal_times(process: ProcessSpec, u: Tensor, *, mean: float, std: float) -> Tensor:
    """t: the shape of u; log(s / (1 - s)) is normal for s = (t - t_min) / (t_max - t_min)."""
    return uniform_times(process, torch.sigmoid(mean + std * torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))))


def log_normal_times(process: GaussianProcess, u: Tensor, *, mean: float, std: float) -> Tensor:
    """t: the shape of u, with log(sigma/alpha) normal, clipped to [t_min, t_max]."""
    log_sigma = mean + std * torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
    return process.log_snr_inverse(-2 * log_sigma).clamp(process.t_min, process.t_max)


class ImportanceDensity:
    """A density on [t_min, t_max] proportional to a weight, piecewise constant between knots.

    Arguments:
        process: gives the range, and the spacing of the knots: half of them uniform in t, half in log(sigma/alpha).
        weight: maps t (K,) to a weight (K,), float64.
    """

    def __init__(self, process: GaussianProcess, weight: Callable[[Tensor], Tensor]) -> None:
        span = torch.linspace(0, 1, _KNOTS, dtype=torch.float64)
        linear = process.t_min + span * (process.t_max - process.t_min)
        high, low = process.log_snr(linear[[0, -1]]).clamp(-20, 20).tolist()
        knots = torch.cat([linear, process.log_snr_inverse(high + span * (low - high))]).unique()
        widths = knots.diff()
        weights = weight(knots[:-1] + widths / 2)
        mass = weights.clamp(min=1e-12 * float(weights.max())) * widths
        self.knots, self.widths = knots, widths
        self.probability = mass / mass.sum()
        self.cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), self.probability.cumsum(0)])

    def times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """t, by the inverse of the distribution function, and the uniform density over this one there."""
        where, u = u.device, u.to(self.knots.device)
        cell = (torch.searchsorted(self.cumulative, u) - 1).clamp(0, len(self.widths) - 1)
        within = ((u - self.cumulative[cell]) / self.probability[cell]).clamp(0, 1)
        t = self.knots[cell] + within * self.widths[cell]
        correction = self.widths[cell] / (self.knots[-1] - self.knots[0]) / self.probability[cell]
        return t.to(where), correction.to(where)
