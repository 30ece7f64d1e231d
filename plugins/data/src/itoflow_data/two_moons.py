r"""Two interleaved half circles.

    p = (cos a, sin a)  or  p = (1 - cos a, 1/2 - sin a),   a uniform in [0, pi), either with probability 1/2

    E[p] = (1/2, 1/4),   Var[p] = (3/4, 9/16 - 1/pi)

References:
    `sklearn.datasets.make_moons`, where the angles are evenly spaced instead of random.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge
from pydantic import FiniteFloat

from itoflow_data.synthetic import Array, Standardised


class TwoMoons(Standardised):
    """Two half circles of radius 1, standardised; class 0 is the upper one."""

    mean: ClassVar[tuple[float, float]] = (0.5, 0.25)
    variance: ClassVar[float] = (3 / 4 + 9 / 16 - 1 / math.pi) / 2
    reach: ClassVar[float] = 1.5

    noise: Annotated[FiniteFloat, Ge(0)] = 0.05
    """Standard deviation of the noise, in units of the circles' radius."""
    labels: bool = False
    """Label each example with its half circle."""

    @property
    def classes(self) -> int | None:
        """2 where `labels` is on."""
        return 2 if self.labels else None

    def points(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """See the module's formula."""
        lower = rng.integers(2, size=n)
        angle = rng.uniform(0, np.pi, size=n)
        sign = 1 - 2 * lower
        return np.stack([lower + sign * np.cos(angle), lower / 2 + sign * np.sin(angle)], axis=1), lower
