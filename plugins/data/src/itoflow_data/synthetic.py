"""What the synthetic data sets share: sizes, seed and scale, and how a part is drawn.

The part of index i (train 0, test 1) is drawn by `numpy.random.default_rng([seed, i])`: two independent streams, so
that the parts share no example, and neither depends on the size of the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from pydantic import FiniteFloat

from itoflow import DataSpec
from itoflow_data.base import DataSource, Examples, Split, split_index

Array = NDArray[Any]

TAIL = 8.0
"""Bounds lie this many noise deviations outside; a normal number exceeds it with probability 1e-15."""


class Synthetic(DataSource, ABC):
    """A distribution that is drawn from."""

    n_train: Annotated[int, Ge(1)] = 10_000
    """Number of examples in the train part."""
    n_test: Annotated[int, Ge(1)] = 2_000
    """Number of examples in the test part."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of both parts."""
    scale: Annotated[FiniteFloat, Gt(0)] = 1.0
    """Factor on all values."""

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """n independent examples, (n, D) float64 in data units, and the component of each, (n,) integers."""

    def load(self, split: Split) -> Examples:
        """(n_train, D) or (n_test, D), with `class` where the data spec has classes.

        Raises:
            InputError: there is no such part.
        """
        index = split_index(split)
        x, component = self.draw((self.n_train, self.n_test)[index], np.random.default_rng([self.seed, index]))
        cond = {} if self.spec.classes is None else {"class": torch.from_numpy(component.astype(np.int64))}
        return Examples(torch.from_numpy(x.astype(np.float32)), cond)


class Standardised(Synthetic, ABC):
    r"""A shape in the plane, blurred by Gaussian noise, centred, and divided by its standard deviation.

        x = scale (p + noise eps - mean) / sqrt(variance + noise^2),   eps ~ N(0, I)

    with the exact mean and variance of the points p, so that the standard deviation of all values is `scale`, and one
    factor for both axes, so that shapes stay similar. A value lies between low and high with probability 1 - 1e-15.
    """

    mean: ClassVar[tuple[float, float]]
    """E[p]."""
    variance: ClassVar[float]
    """The mean of the variances of the two coordinates of p."""
    reach: ClassVar[float]
    """The largest distance, along an axis, of a point from the mean."""

    noise: Annotated[FiniteFloat, Ge(0)] = 0.0
    """Standard deviation of the noise, in units of the points p, before they are standardised."""

    @abstractmethod
    def points(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """n points p, (n, 2) float64, and the component of each, (n,) integers."""

    @property
    def classes(self) -> int | None:
        """The number of classes that the examples are labelled with, or None."""
        return None

    @property
    def factor(self) -> float:
        """Data units per unit of p."""
        return self.scale / float(np.sqrt(self.variance + self.noise**2))

    @property
    def spec(self) -> DataSpec:
        """Two coordinates of standard deviation `scale`."""
        bound = self.factor * (self.reach + TAIL * self.noise)
        return DataSpec(shape=(2,), classes=self.classes, std=self.scale, low=-bound, high=bound)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """See the formula of the class."""
        p, component = self.points(n, rng)
        return self.factor * (p + self.noise * rng.standard_normal(p.shape) - np.array(self.mean)), component
