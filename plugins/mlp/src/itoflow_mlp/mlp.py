r"""A residual MLP whose blocks are modulated by time and condition.

    e = SiLU(MLP(time features) + class embedding + vector embedding);   h = W_in x
    block:  h <- h + gate(e) W_2 dropout(SiLU(W_1 [LayerNorm(h) (1 + scale(e)) + shift(e)]))
    out:    y = W_out SiLU(LayerNorm(h) (1 + scale(e)) + shift(e))

scale, shift and gate are linear in e and start at zero, as does W_out: every block starts as the identity, and the
network as y = 0.

References:
    Scalable Diffusion Models with Transformers (Peebles and Xie, 2022), https://arxiv.org/abs/2212.09748, section 3.2,
    for the modulation (adaLN-zero).
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
from itoflow.embedding import Embedding, Sinusoids


class MLP(Backbone):
    """Residual MLP on the flattened example; for data of any shape, with class and vector conditions."""

    width: Annotated[int, Ge(1)] = 256
    """Size of the residual stream."""
    depth: Annotated[int, Ge(0)] = 3
    """Number of residual blocks."""
    expansion: Annotated[int, Ge(1)] = 1
    """Hidden size of a block over the width."""
    embedding: Annotated[int, Ge(1)] = 128
    """Size of the embedding e of time and condition."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability with which a hidden value of a block is dropped in training."""
    frequencies: Annotated[int, Ge(1)] = 32
    """Number of sine and cosine pairs that describe the time."""
    max_frequency: Annotated[float, Gt(1)] = 100.0
    """Highest of them, in radians per unit of t; they are spaced geometrically from 1."""

    def build(self, data: DataSpec) -> nn.Module:
        """The network for that data."""
        return ResidualMLP(self, data)


class ResidualMLP(nn.Module):
    """See the module's formula; net(x, t, cond) with x (B, *S), t (B,)."""

    def __init__(self, spec: MLP, data: DataSpec) -> None:
        super().__init__()
        size, width, embedding = math.prod(data.shape), spec.width, spec.embedding
        frequencies = spec.max_frequency ** torch.linspace(0, 1, spec.frequencies)
        self.embed = Embedding(Sinusoids(frequencies), embedding, data)
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width, spec.expansion * width, spec.dropout) for _ in range(spec.depth))
        self.leave = nn.Linear(width, size)
        self.modulation = nn.Linear(embedding, (3 * spec.depth + 2) * width)  # of all blocks, in one product
        for layer in (self.leave, self.modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """(B, *S)."""
        e = self.embed(t, cond)
        h = self.enter(rearrange(x, "b ... -> b (...)"))
        parts = iter(rearrange(self.modulation(nn.functional.silu(e)), "b (k w) -> k b w", w=h.shape[1]))
        for block in self.blocks:
            h = block(h, next(parts), next(parts), next(parts))
        y: Tensor = self.leave(nn.functional.silu(modulate(h, next(parts), next(parts))))
        return y.view_as(x)


class Block(nn.Module):
    """h + gate W_2 dropout(SiLU(W_1 modulate(h)))."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        """(B, width), all four arguments too."""
        inner = self.dropout(nn.functional.silu(self.up(modulate(h, scale, shift))))
        return torch.addcmul(h, gate, self.down(inner))


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm(h) (1 + scale) + shift."""
    return torch.addcmul(shift, nn.functional.layer_norm(h, h.shape[-1:]), 1 + scale)
