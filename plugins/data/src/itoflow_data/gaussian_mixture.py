r"""A mixture of isotropic Gaussians, whose density is known.

p(x) = sum_k w_k N(x; m_k, s_k^2 I),   x in R^D
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, MinLen
from pydantic import FiniteFloat, model_validator
from torch import Tensor

from itoflow import DataSpec, InputError
from itoflow_data.synthetic import TAIL, Array, Synthetic

Positive = Annotated[FiniteFloat, Gt(0)]


def ring(modes: int, radius: float) -> tuple[tuple[float, float], ...]:
    """Points evenly spaced on a circle about the origin, counter-clockwise from (radius, 0)."""
    angles = [2 * math.pi * k / modes for k in range(modes)]
    return tuple((radius * math.cos(angle), radius * math.sin(angle)) for angle in angles)


@dataclass(frozen=True, eq=False)
class Components:
    """The Gaussians of a mixture, in float64 and data units.

    Arguments:
        means: m, (K, D).
        stds: s, (K,).
        weights: w, (K,), of sum 1.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), nats, (N,) for x (N, D) in data units; computed in float64, returned in x's dtype.

        Raises:
            InputError: x is not floating of shape (N, D).
        """
        size = self.means.shape[1]
        if x.ndim != 2 or x.shape[1] != size or not x.is_floating_point():
            raise InputError(f"x must be floating, of shape (N, {size}). Given: {x.dtype} of shape {tuple(x.shape)}.")
        means, stds, weights = (value.to(x.device) for value in (self.means, self.stds, self.weights))
        squares = ((x.to(torch.float64)[:, None] - means) / stds[:, None]).square().sum(2)
        logs = weights.log() - squares / 2 - size * (stds.log() + math.log(2 * math.pi) / 2)
        return torch.logsumexp(logs, dim=1).to(x.dtype)


class GaussianMixture(Synthetic):
    """Gaussians of given means, deviations and weights, taken as they are and multiplied by `scale`.

    By default eight on a ring, of which the standard deviation of all values is 1.
    """

    means: Annotated[tuple[Annotated[tuple[FiniteFloat, ...], MinLen(1)], ...], MinLen(1)] = ring(8, math.sqrt(1.98))
    """m_k, over `scale`: one tuple of D numbers for each of K components."""
    stds: Annotated[tuple[Positive, ...], MinLen(1)] = (0.1,)
    """s_k, over `scale`: one for all, or one for each component."""
    weights: tuple[Positive, ...] = ()
    """w_k up to a factor, one for each component; none means equal weights."""
    labels: bool = False
    """Label each example with its component."""

    @model_validator(mode="after")
    def _matching(self) -> GaussianMixture:
        k, sizes = len(self.means), {len(mean) for mean in self.means}
        if len(sizes) > 1:
            raise ValueError(f"the means have different sizes: {sorted(sizes)}")
        if len(self.stds) not in (1, k):
            raise ValueError(f"{len(self.stds)} stds for {k} means: give one, or one for each")
        if len(self.weights) not in (0, k):
            raise ValueError(f"{len(self.weights)} weights for {k} means: give none, or one for each")
        if self.labels and k < 2:
            raise ValueError("labels need two components or more")
        return self

    @property
    def components(self) -> Components:
        """The K Gaussians, scaled."""
        means = torch.tensor(self.means, dtype=torch.float64)
        weights = torch.tensor(self.weights or (1.0,) * len(means), dtype=torch.float64)
        stds = torch.tensor(self.stds, dtype=torch.float64).expand(len(means))
        return Components(self.scale * means, self.scale * stds, weights / weights.sum())

    @property
    def spec(self) -> DataSpec:
        """D values; `std` is the exact deviation of all values about their common mean, the bounds 8 deviations out."""
        parts = self.components
        m, s, w = parts.means, parts.stds[:, None], parts.weights[:, None]
        mean = (w * m).sum() / m.shape[1]
        variance = (w * ((m - mean).square() + s.square())).sum() / m.shape[1]
        return DataSpec(
            shape=(m.shape[1],),
            classes=len(m) if self.labels else None,
            std=float(variance.sqrt()),
            low=float((m - TAIL * s).min()),
            high=float((m + TAIL * s).max()),
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log density, nats, (N,) for x (N, D) in data units.

        Raises:
            InputError: x is not floating of shape (N, D).
        """
        return self.components.log_prob(x)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """A component by its weight, then a point of that Gaussian."""
        parts = self.components
        m, s, w = parts.means.numpy(), parts.stds.numpy(), parts.weights.numpy()
        component = rng.choice(len(m), size=n, p=w)
        return m[component] + s[component, None] * rng.standard_normal((n, m.shape[1])), component
