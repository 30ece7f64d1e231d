r"""Residual convolutions on two scales for small images whose pixels have a place.

    e = SiLU(MLP(time features) + class embedding + vector embedding);   h = conv(x) + P
    block:   h <- h + conv(dropout(SiLU(GroupNorm(a) (1 + scale(e)) + shift(e)))),   a = conv(SiLU(GroupNorm(h))) + P
    network: blocks -> half the size -> blocks -> dense -> blocks -> full size, plus what entered -> blocks -> out
    dense:   h <- h + W_2 SiLU(W_1 GroupNorm(h) + e'),   over all values of the half-size map at once

P are learned position maps, one value for each channel and pixel: convolutions share their weights, and centred,
aligned images (digits) do not share their statistics. The dense layer sees the image as a whole. The last layer of each
block, and of the network, starts at zero: the network starts as y = 0.

References:
    Deep Residual Learning for Image Recognition (He et al., 2016), https://arxiv.org/abs/1512.03385.
    U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015),
    https://arxiv.org/abs/1505.04597, for the two scales and the skip.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233,
    section 3, for the modulation of group norms (AdaGN).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn.functional import silu

from itoflow import Backbone, DataSpec, IncompatibleError
from itoflow.embedding import Embedding, Sinusoids


class ResNet(Backbone):
    """Two-scale residual network for images (C, H, W) with even sides, with class and vector conditions."""

    width: Annotated[int, Ge(1)] = 32
    """Channels at full size."""
    inner_width: Annotated[int, Ge(1)] = 48
    """Channels at half size."""
    depth: Annotated[int, Ge(1)] = 2
    """Blocks of each of the four stages."""
    dense: Annotated[int, Ge(0)] = 128
    """Hidden size of the dense layer; 0 leaves it out."""
    embedding: Annotated[int, Ge(1)] = 128
    """Size of the embedding e of time and condition."""
    groups: Annotated[int, Ge(1)] = 8
    """Groups of the norms; it divides both widths."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability with which a value of a block is dropped in training."""
    frequencies: Annotated[int, Ge(1)] = 32
    """Number of sine and cosine pairs that describe the time."""
    max_frequency: Annotated[float, Gt(1)] = 1000.0
    """Highest of them, in radians per unit of t; they are spaced geometrically from 1."""

    def build(self, data: DataSpec) -> nn.Module:
        """The network for that data."""
        if len(data.shape) != 3 or data.shape[1] % 2 or data.shape[2] % 2:
            raise IncompatibleError(
                f"Backbone ResNet is for images (C, H, W) with even H and W. Given: shape {data.shape}. Pad them, "
                "or use a backbone for any shape, e.g. 'mlp'."
            )
        if self.width % self.groups or self.inner_width % self.groups:
            raise IncompatibleError(
                f"groups = {self.groups} must divide width = {self.width} and inner_width = {self.inner_width}."
            )
        return TwoScales(self, data)


class TwoScales(nn.Module):
    """See the module's formula; net(x, t, cond) with x (B, C, H, W), t (B,)."""

    def __init__(self, spec: ResNet, data: DataSpec) -> None:
        super().__init__()
        channels, height, width = data.shape
        outer, inner, embedding = spec.width, spec.inner_width, spec.embedding
        half = (height // 2, width // 2)
        frequencies = spec.max_frequency ** torch.linspace(0, 1, spec.frequencies)
        self.embed = Embedding(Sinusoids(frequencies), embedding, data)

        def stage(size: int, sides: tuple[int, int]) -> nn.ModuleList:
            return nn.ModuleList(Block(size, sides, spec) for _ in range(spec.depth))

        self.enter = nn.Conv2d(channels, outer, 3, padding=1)
        self.position = nn.Parameter(0.1 * torch.randn(outer, height, width))
        self.first = stage(outer, (height, width))
        self.down = nn.Conv2d(outer, inner, 2, stride=2)
        self.second = stage(inner, half)
        self.dense = Dense(inner, half, spec) if spec.dense else None
        self.third = stage(inner, half)
        self.up = nn.ConvTranspose2d(inner, outer, 2, stride=2)
        self.fourth = stage(outer, (height, width))
        self.norm = nn.GroupNorm(spec.groups, outer)
        self.leave = _zero(nn.Conv2d(outer, channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """(B, C, H, W)."""
        e = silu(self.embed(t, cond))
        outer = _through(self.first, self.enter(x) + self.position, e)
        h = _through(self.second, self.down(outer), e)
        if self.dense is not None:
            h = self.dense(h, e)
        h = outer + self.up(_through(self.third, h, e))
        y: Tensor = self.leave(silu(self.norm(_through(self.fourth, h, e))))
        return y


class Block(nn.Module):
    """The module's `block`."""

    def __init__(self, size: int, sides: tuple[int, int], spec: ResNet) -> None:
        super().__init__()
        self.norm, self.inner_norm = nn.GroupNorm(spec.groups, size), nn.GroupNorm(spec.groups, size)
        self.enter = nn.Conv2d(size, size, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(size, *sides))
        self.modulation = nn.Linear(spec.embedding, 2 * size)
        self.dropout = nn.Dropout(spec.dropout)
        self.leave = _zero(nn.Conv2d(size, size, 3, padding=1))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """(B, size, *sides), of e (B, embedding)."""
        a = self.enter(silu(self.norm(h))) + self.position
        scale, shift = self.modulation(e)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = h + self.leave(self.dropout(silu(torch.addcmul(shift, self.inner_norm(a), 1 + scale))))
        return out


class Dense(nn.Module):
    """The module's `dense`."""

    def __init__(self, size: int, sides: tuple[int, int], spec: ResNet) -> None:
        super().__init__()
        values = size * math.prod(sides)
        self.norm = nn.GroupNorm(spec.groups, size)
        self.enter, self.modulation = nn.Linear(values, spec.dense), nn.Linear(spec.embedding, spec.dense)
        self.leave = _zero(nn.Linear(spec.dense, values))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """(B, size, *sides)."""
        out: Tensor = h + self.leave(silu(self.enter(self.norm(h).flatten(1)) + self.modulation(e))).view_as(h)
        return out


def _through(stage: nn.ModuleList, h: Tensor, e: Tensor) -> Tensor:
    for block in stage:
        h = block(h, e)
    return h


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
