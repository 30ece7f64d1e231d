r"""Between the values of a data set and those that a model is trained on.

Discrete data x get uniform noise of one level's width, and data seen through a bijection (`itoflow_data.Transformed`)
are mapped by it,

    x  ->  y = x + w (u - 1/2)  ->  z = forward(y),   log p(y) = log p(z) + log |det dz/dy|,

and samples of z go back by its inverse, to be rounded to the levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from itoflow import InputError
from itoflow.likelihood import dequantise
from itoflow_data import DataSource, Transformed
from itoflow_train.recipe import Recipe


class Values:
    """What a recipe's data are and what its model sees.

    Arguments:
        source: the recipe's data.
        dequantised: whether the model is trained on dequantised data; a bijection always is.

    Raises:
        InputError: dequantisation of continuous data.
    """

    def __init__(self, source: DataSource, *, dequantised: bool) -> None:
        self.source = source.source if isinstance(source, Transformed) else source
        self.data = self.source.spec
        self.map = source.fit() if isinstance(source, Transformed) else None
        self.dequantised = dequantised or self.map is not None
        if self.dequantised and self.data.levels is None:
            raise InputError("training.dequantise is for discrete data; this data spec has no levels. Leave it out.")

    @classmethod
    def of(cls, recipe: Recipe) -> Values:
        """Those of a recipe."""
        return cls(recipe.data, dequantised=recipe.training.dequantise)

    def noisy(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """y of data x (B, *S); x itself where the model is not trained on dequantised data."""
        return dequantise(x, self.data, generator) if self.dequantised else x

    def enter(self, y: Tensor) -> Tensor:
        """z of y, in y's dtype."""
        return y if self.map is None else self.map.forward(y).to(y.dtype)

    def leave(self, z: Tensor) -> Tensor:
        """y of z, in z's dtype."""
        return z if self.map is None else self.map.inverse(z).to(z.dtype)

    def log_det(self, y: Tensor) -> Tensor:
        """log |det dz/dy|, (B,), float64."""
        return torch.zeros(len(y), dtype=torch.float64, device=y.device) if self.map is None else self.map.log_det(y)
