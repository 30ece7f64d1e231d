r"""A residual MLP whose blocks are modulated by time and condition.

    e = time features + class embedding + vector embedding;   h = W_in x
    block:  h <- h + W_2 SiLU(W_1 [RMSNorm(h) (1 + scale(e)) + shift(e)])
    out:    y = W_out [RMSNorm(h) (1 + scale(e)) + shift(e)]

The last matrix of each block and of the network start at zero, so that the network starts as y = 0.

References:
    Scalable Diffusion Models with Transformers (Peebles and Xie, 2022), https://arxiv.org/abs/2212.09748, section 3.2,
    for the modulation.
    Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains (Tancik et al., 2020),
    https://arxiv.org/abs/2006.10739.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from einops import rearrange
from torch import Tensor, nn

from itoflow import Backbone, DataSpec


class MLP(Backbone):
    """Residual MLP on the flattened example."""

    width: Annotated[int, Ge(1)] = 256
    """Size of the residual stream."""
    depth: Annotated[int, Ge(0)] = 4
    """Number of residual blocks."""
    expansion: Annotated[int, Ge(1)] = 2
    """Hidden size of a block over the width."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability with which a hidden value of a block is dropped in training."""
    frequencies: Annotated[int, Ge(1)] = 64
    """Number of sine and cosine pairs that describe the time."""
    max_frequency: Annotated[float, Gt(1)] = 100.0
    """Highest of them, in radians per unit of t; they are spaced geometrically from 1."""

    def build(self, data: DataSpec) -> nn.Module:
        """The network for that data, of any shape."""
        return ResidualMLP(self, data)


class ResidualMLP(nn.Module):
    """See the module's formula; net(x, t, cond) with x (B, *S), t (B,)."""

    frequencies: Tensor

    def __init__(self, spec: MLP, data: DataSpec) -> None:
        super().__init__()
        size, width = math.prod(data.shape), spec.width
        exponents = torch.linspace(0, 1, spec.frequencies)
        self.register_buffer("frequencies", spec.max_frequency**exponents, persistent=False)
        self.time = nn.Sequential(nn.Linear(2 * spec.frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(data.classes, width) if data.classes is not None else None
        self.vector = nn.Linear(data.vector, width) if data.vector is not None else None
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width, spec.expansion, spec.dropout) for _ in range(spec.depth))
        self.leave = Modulated(width, nn.Linear(width, size))
        nn.init.zeros_(self.leave.inner.weight)
        nn.init.zeros_(self.leave.inner.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """(B, *S)."""
        angles = t[:, None] * self.frequencies
        embedding = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        if self.label is not None:
            embedding = embedding + self.label(cond["class"])
        if self.vector is not None:
            embedding = embedding + self.vector(cond["vector"].to(x.dtype))
        embedding = nn.functional.silu(embedding)
        h = self.enter(rearrange(x, "b ... -> b (...)"))
        for block in self.blocks:
            h = h + block(h, embedding)
        y: Tensor = self.leave(h, embedding)
        return y.view_as(x)


class Modulated(nn.Module):
    """A module applied to RMSNorm(h) (1 + scale(e)) + shift(e); scale and shift start at zero."""

    def __init__(self, width: int, inner: nn.Linear) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.inner = inner

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """(B, width) to what the inner module gives."""
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        normed = self.norm(h)
        y: Tensor = self.inner(torch.addcmul(normed + shift, normed, scale))
        return y


class Block(nn.Module):
    """W_2 SiLU(W_1 .) of the modulated stream; W_2 starts at zero."""

    def __init__(self, width: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.first = Modulated(width, nn.Linear(width, expansion * width))
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(expansion * width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """(B, width)."""
        y: Tensor = self.second(self.dropout(nn.functional.silu(self.first(h, embedding))))
        return y
