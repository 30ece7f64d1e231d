r"""Marginal Gaussianisation: every value of discrete data mapped to a standard normal of its own, exactly accounted.

Value i of an example has levels k = 0 ... L - 1, which dequantisation spreads over cells of width w. With p_i(k) how
often level k occurs there in the train part, the density of the dequantised value is taken as p_i(k) / w in cell k, and

    z_i = Phi^{-1}(F_i(x_i)),   F_i(x) = sum_{j < k} p_i(j) + u p_i(k),   u = (x - low) / w + 1/2 - k,        (1)
    log |dz_i / dx_i| = log p_i(k) - log w + z_i^2 / 2 + log(2 pi) / 2.                                       (2)

It is an invertible map of the data, so a density of z gives one of x, log p(x) = log p(z) + sum_i log |dz_i/dx_i|, and
a model that knows nothing, z ~ N(0, I), is already as good as the histograms. The edges of the cells, where the density
steps, are gone from that of z: a network need not learn them. A pixel that is nearly always 0 costs no bits.

p_i is smoothed by c L pseudo-counts, spread as the histogram of all values, c = `pseudo`, so every level has mass.

References:
    Gaussianization (Chen and Gopinath, 2000), section 3: the marginal step of its iteration.
    Iterative Gaussianization: from ICA to Random Rotations (Laparra et al., 2011), https://arxiv.org/abs/1602.00229.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from itoflow import DataSpec, InputError
from itoflow.likelihood import dequantise, level_width
from itoflow_data.base import Bijection, DataSource, Examples, Split, Transformed, split_index, to_levels

_FLOOR = 2.0**-40
"""F is kept this far from 0 and 1, so that z is finite: within 7.1 standard deviations."""
_SHOWN = 3.0
"""Standard deviations that a picture of z spans."""


class Gaussianised(Transformed):
    """Discrete data, dequantised, each value with standard normal marginals."""

    source: DataSource
    """The data set, with levels."""
    pseudo: Annotated[float, Gt(0)] = 0.5
    """Pseudo-counts of a level."""

    @property
    def spec(self) -> DataSpec:
        """The source's, but continuous, with standard deviation 1."""
        spec = self.source.spec
        if spec.levels is None:
            raise InputError(f"Gaussianised is for data with levels; {type(self.source).__name__} has none.")
        return spec.replace(std=1.0, levels=None, low=-_SHOWN, high=_SHOWN)

    def fit(self) -> MarginalGaussianisation:
        """The map, by the histograms of the train part."""
        return MarginalGaussianisation(self.source.load("train").x, self.source.spec, self.pseudo)

    def load(self, split: Split) -> Examples:
        """z of the source's examples, dequantised once, by a seed of the part."""
        seed = split_index(split)
        examples, spec = self.source.load(split), self.source.spec
        x = dequantise(examples.x.double(), spec, torch.Generator().manual_seed(seed))
        return Examples(self.fit().forward(x).float(), examples.cond)


class MarginalGaussianisation(Bijection):
    """Equation (1) for the histograms of some examples.

    Arguments:
        x: (N, *S), at the levels of `spec`.
        spec: of the data, with levels.
        pseudo: pseudo-counts of a level.
    """

    def __init__(self, x: Tensor, spec: DataSpec, pseudo: float = 0.5) -> None:
        levels = to_levels(x, spec).flatten(1)
        count = spec.levels or 0
        size = levels.shape[1]
        cells = (levels + count * torch.arange(size)).flatten()
        counts = torch.bincount(cells, minlength=size * count).view(size, count).T.double()  # (L, D)
        overall = counts.sum(1, keepdim=True) + pseudo
        counts = counts + pseudo * count * overall / overall.sum()
        self.low, self.width, self.count = spec.low, level_width(spec), count
        self.mass = counts / counts.sum(0)
        self.below = torch.cat([torch.zeros(1, counts.shape[1], dtype=torch.float64), self.mass.cumsum(0)])
        self.below[-1] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """z (B, *S), float64, of dequantised x (B, *S); values outside the cells go to the nearest end."""
        return self._z(x)[0].view(x.shape)

    def log_det(self, x: Tensor) -> Tensor:
        """sum_i log |dz_i/dx_i|, (B,), equation (2)."""
        z, mass = self._z(x)
        terms: Tensor = mass.log() - math.log(self.width) + z.square() / 2 + math.log(2 * math.pi) / 2
        return terms.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """x (B, *S), float64."""
        share = torch.special.ndtr(z.double()).flatten(1)
        below, masses = self.below.to(z.device), self.mass.to(z.device)
        k = (torch.searchsorted(below.T.contiguous(), share.T.contiguous(), right=True).T - 1).clamp(0, self.count - 1)
        u = (share - below.gather(0, k)) / masses.gather(0, k)
        x: Tensor = self.low + self.width * (k + u.clamp(0, 1) - 0.5)
        return x.view(z.shape)

    def _z(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and p of the level that each value belongs to, (B, D)."""
        v = ((x.double().flatten(1) - self.low) / self.width + 0.5).clamp(0, self.count)
        k = v.detach().floor().clamp(max=self.count - 1).long()
        mass, below = self.mass.to(x.device).gather(0, k), self.below.to(x.device).gather(0, k)
        z: Tensor = torch.special.ndtri((below + (v - k) * mass).clamp(_FLOOR, 1 - _FLOOR))
        return z, mass
