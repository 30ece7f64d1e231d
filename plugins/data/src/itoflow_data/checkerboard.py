r"""The dark squares of a 4 x 4 checkerboard.

p uniform on the eight unit squares [i, i + 1) x [j, j + 1) with i + j even, -2 <= i, j < 2

E[p] = 0,   Var[p] = (4/3, 4/3): either coordinate alone is uniform on [-2, 2)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from itoflow_data.synthetic import Array, Standardised


class Checkerboard(Standardised):
    """Eight squares with sharp edges (unless `noise` blurs them), standardised."""

    mean: ClassVar[tuple[float, float]] = (0.0, 0.0)
    variance: ClassVar[float] = 4 / 3
    reach: ClassVar[float] = 2.0

    def points(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """See the module's formula; the component is the number of the square."""
        square = rng.integers(8, size=n)
        column = square // 2
        row = 2 * (square % 2) + column % 2
        return np.stack([column, row], axis=1) - 2 + rng.uniform(size=(n, 2)), square
