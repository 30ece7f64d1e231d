r"""A spiral: the cross-section of the Swiss roll.

    p = (a cos a, a sin a),   a uniform in [3 pi / 2, 9 pi / 2)

    E[p] = (2, 2 / (3 pi)),   E|p|^2 = 39 pi^2 / 4

References:
    `sklearn.datasets.make_swiss_roll`, whose first and third coordinates these are.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge
from pydantic import FiniteFloat

from itoflow_data.synthetic import Array, Standardised


class SwissRoll(Standardised):
    """One and a half turns of a spiral whose arms are 2 pi apart, standardised."""

    mean: ClassVar[tuple[float, float]] = (2.0, 2 / (3 * math.pi))
    variance: ClassVar[float] = (39 * math.pi**2 / 4 - 4 - (2 / (3 * math.pi)) ** 2) / 2
    reach: ClassVar[float] = 4.5 * math.pi - 2 / (3 * math.pi)

    noise: Annotated[FiniteFloat, Ge(0)] = 0.5
    """Standard deviation of the noise, where the spiral's arms are 2 pi apart."""

    def points(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """See the module's formula; there is one component."""
        angle = rng.uniform(1.5 * np.pi, 4.5 * np.pi, size=n)
        return np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1), np.zeros(n, dtype=np.int64)
