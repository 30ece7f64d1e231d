r"""Where a token lies, for attention that by itself sees no order.

    sincos    p (D,):  for each axis a with coordinate m,  sin(m w_j) and cos(m w_j),  w_j = 10000^(-j / n)       (1)
              j = 0 ... n - 1,  n = D / (2 axes); added to the token
    rotary    (q_2j, q_2j+1) turned by the angle m w_j,  w_j = base^(-j / n),  each axis its share of pairs j      (2)
              the same for k, so that q . k depends on the distance of two tokens alone

Coordinates count patches from 0.

References:
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762, section 3.5, for (1).
    RoFormer: Enhanced Transformer with Rotary Position Embedding (Su et al., 2021), https://arxiv.org/abs/2104.09864,
    equation 34, for (2).
    Rotary Position Embedding for Vision Transformer (Heo et al., 2024), https://arxiv.org/abs/2403.13298, section 3,
    for (2) on axes, and a base of 100 for grids.
"""

from __future__ import annotations

import torch
from torch import Tensor


def angles(grid: tuple[int, ...], pairs: int, base: float) -> Tensor:
    """m w_j for each token and each of `pairs` frequencies, a share of them for each axis: (N, pairs), float64."""
    n = pairs // len(grid)
    frequencies = base ** (-torch.arange(n, dtype=torch.float64) / n)
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    return torch.cat([axis.flatten()[:, None] * frequencies for axis in axes], dim=1)


def sincos(grid: tuple[int, ...], width: int) -> Tensor:
    """p of equation 1 for the tokens of a grid in row-major order: (N, width), float32."""
    parts = angles(grid, width // 2, 10000.0).chunk(len(grid), dim=1)
    return torch.cat([f(part) for part in parts for f in (torch.sin, torch.cos)], dim=1).float()


def rotary(grid: tuple[int, ...], size: int, base: float) -> Tensor:
    """cos and sin of the angles of equation 2 for heads of that size: (2, N, size / 2), float32."""
    turn = angles(grid, size // 2, base)
    return torch.stack([turn.cos(), turn.sin()]).float()


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Equation 2: queries or keys x (B, H, N, K) turned by `turn` (2, N, K / 2)."""
    cos, sin = turn.to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
