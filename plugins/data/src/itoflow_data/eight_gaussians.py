r"""Eight Gaussians on a ring.

    p = (cos a, sin a),   a uniform among the multiples of pi / 4;   E[p] = 0,   Var[p] = (1/2, 1/2)

In papers the ring often has radius 5 and variance 0.1: those proportions are noise = 0.0632, that size scale = 3.55.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Gt
from pydantic import FiniteFloat
from torch import Tensor

from itoflow_data.gaussian_mixture import Components, ring
from itoflow_data.synthetic import Array, Standardised


class EightGaussians(Standardised):
    """Eight Gaussians on a ring of radius 1, standardised; classes count counter-clockwise from the positive x axis."""

    mean: ClassVar[tuple[float, float]] = (0.0, 0.0)
    variance: ClassVar[float] = 0.5
    reach: ClassVar[float] = 1.0

    noise: Annotated[FiniteFloat, Gt(0)] = 0.1
    """Standard deviation of each Gaussian, in units of the ring's radius."""
    labels: bool = False
    """Label each example with its Gaussian."""

    @property
    def classes(self) -> int | None:
        """8 where `labels` is on."""
        return 8 if self.labels else None

    @property
    def components(self) -> Components:
        """The eight Gaussians, standardised and scaled."""
        ones = torch.ones(8, dtype=torch.float64)
        means = torch.tensor(ring(8, self.factor), dtype=torch.float64)
        return Components(means, self.factor * self.noise * ones, ones / 8)

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log density, nats, (N,) for x (N, 2) in data units.

        Raises:
            InputError: x is not floating of shape (N, 2).
        """
        return self.components.log_prob(x)

    def points(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """See the module's formula."""
        component = rng.integers(8, size=n)
        return np.array(ring(8, 1.0))[component], component
