r"""Features of the time.

    sinusoidal   cos(w_j s), sin(w_j s),   w_j = 10000^(-j / (n - shift)),  j = 0 ... n - 1
    fourier      sin(2 pi w_j s), cos(2 pi w_j s),   w_j ~ N(0, scale^2), drawn once

References:
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762, section 3.5.
    Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains (Tancik et al., 2020),
    https://arxiv.org/abs/2006.10739.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from itoflow.embedding import Features, Sinusoids
from itoflow_unet.unet import UNet


def sinusoids(spec: UNet) -> Sinusoids:
    """Geometrically spaced frequencies from 1 down to about 1e-4, radians per unit of s."""
    n = max(1, spec.channels // 2)
    # float32 on purpose: features of s = 1000 feel the last bit of a frequency, and checkpoints know this one.
    exponent = -math.log(10000) * torch.arange(n, dtype=torch.float32) / (n - spec.frequency_shift)
    return Sinusoids(exponent.exp(), cosine_first=spec.cosine_first)


class Fourier(Features):
    """s (B,) to (B, 2 n): random frequencies, turns per unit of s, part of the state and not trained."""

    weight: Tensor

    def __init__(self, n: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("weight", scale * torch.randn(n))
        self.size = 2 * n

    def forward(self, s: Tensor) -> Tensor:
        """(B, 2 n)."""
        angles = s[:, None] * self.weight * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=1)
