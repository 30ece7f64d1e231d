r"""The residual U-Net as a module.

    e = MLP(features(time_scale t + time_shift)) + class embedding + vector embedding
    h = conv(x)
    down    the blocks of a level, then half the sides
    middle  block, attention, block
    up      the blocks of a level, each on (h, the feature map left by its counterpart), then twice the sides
    y = conv(SiLU(norm(h)))

Every residual block takes its part of W SiLU(e), one matrix product for all of them. With input and output skips
(`skips`), filtered copies of x enter each level, and each level adds an output of its own to the filtered sum so far.
With `residual` (NCSN++), i = x is carried on beside h, and each level but the last ends by h = i = (conv(i) + h) / r.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itoflow import DataSpec
from itoflow.embedding import Embedding
from itoflow.transforms import under_func
from itoflow_unet.blocks import AttentionBlock, ResidualBlock
from itoflow_unet.features import Fourier, sinusoids
from itoflow_unet.norm import Norm
from itoflow_unet.resample import (
    CONVOLUTIONS,
    FilteredConv,
    RepeatConv,
    StridedConv,
    double,
    double_filtered,
    halve,
    halve_filtered,
)
from itoflow_unet.unet import UNet

Parts = Iterator[Tensor]


class ResidualUNet(nn.Module):
    """See the module's formula; net(x, t, cond) with x (B, C, ...), t (B,)."""

    def __init__(self, spec: UNet, data: DataSpec) -> None:
        super().__init__()
        channels, ndim, widths = data.shape[0], len(data.shape) - 1, spec.widths
        conv = CONVOLUTIONS[ndim - 1]
        self.spec = spec
        size = spec.embedding or 4 * spec.channels
        features = Fourier(spec.channels, spec.fourier_scale) if spec.time == "fourier" else sinusoids(spec)
        self.embed = Embedding(features, size, data)

        self.enter = conv(channels, spec.inside(0), 3, padding=1)
        self.down = nn.ModuleList(Down(spec, data, level) for level in range(len(widths)))
        self.middle = Middle(spec, ndim) if spec.middle else None
        self.up = nn.ModuleList(Up(spec, data, level) for level in reversed(range(len(widths))))
        self.leave = Output(spec, ndim, widths[0], channels)

        self.parts = [block.modulation for block in self.modules() if isinstance(block, ResidualBlock)]
        self.modulation = nn.Linear(size, sum(self.parts))
        initialise(self, spec.zero_init)
        if ndim == 2:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # weights as the maps lie

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """(B, C, ...)."""
        spec = self.spec
        s = spec.time_scale * t + spec.time_shift
        e = self.embed(s, cond)
        parts = iter(self.modulation(F.silu(e)).split(self.parts, dim=1))

        if x.ndim == 4 and not under_func():  # channels together in memory: the layout that convolutions are fastest in
            x = x.contiguous(memory_format=torch.channels_last)
        image = x = 2 * x - 1 if spec.center else x
        h = self.enter(x)
        skips = [h]
        for down in self.down:
            h, image = down(h, image, parts, skips)
        if self.middle is not None:
            h = self.middle(h, parts)
        output: Tensor | None = None
        for up in self.up:
            h, output = up(h, output, parts, skips)
        y: Tensor = self.leave(h)
        if output is not None:
            y = y + output
        return y / s.exp().to(y.dtype).view(-1, *[1] * (x.ndim - 1)) if spec.divide_output else y


class Down(nn.Module):
    """One level on the way down: every feature map that it makes goes to `skips`, that of half the sides too."""

    def __init__(self, spec: UNet, data: DataSpec, level: int) -> None:
        super().__init__()
        ndim, widths = len(data.shape) - 1, spec.widths
        inside, width = spec.inside(level), widths[level]
        attends, last = spec.sizes(data)[level] in spec.attention, level == len(widths) - 1
        self.blocks = nn.ModuleList(
            ResidualBlock(spec, ndim, width if i else inside, width, rescale=spec.rescale) for i in range(spec.blocks)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(spec, width, rescale=spec.rescale) if attends else nn.Identity() for _ in self.blocks
        )
        self.change = None if last else Halve(spec, ndim, width)
        self.image: nn.Module | None = None
        self.carries, self.rescale = spec.progressive == "residual", spec.rescale
        if self.carries and not last:
            self.image = FilteredConv(spec.widths[level - 1] if level else data.shape[0], width, ndim)
        elif spec.progressive == "skips" and not last:
            self.image = CONVOLUTIONS[ndim - 1](data.shape[0], width, 1)

    def forward(self, h: Tensor, image: Tensor, parts: Parts, skips: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The feature map, and the input filtered to its size, or what has been carried on of it."""
        for block, attend in zip(self.blocks, self.attentions, strict=True):
            h = attend(block(h, next(parts)))
            skips.append(h)
        if self.change is not None:
            h = self.change(h, parts)
            if self.image is not None and self.carries:
                h = image = (self.image(image) + h) / self.rescale
            elif self.image is not None:
                image = halve_filtered(image)
                h = self.image(image) + h
            skips.append(h)
        return h, image


class Middle(nn.Module):
    """Residual block, attention, residual block, at the smallest size."""

    def __init__(self, spec: UNet, ndim: int) -> None:
        super().__init__()
        width = spec.widths[-1]
        rescale = spec.rescale if spec.rescale_middle is None else spec.rescale_middle
        self.before = ResidualBlock(spec, ndim, width, width, rescale=rescale)
        self.attend: nn.Module = nn.Identity()
        if spec.middle_attention:
            self.attend = AttentionBlock(spec, width, rescale=rescale, norm=spec.middle_norm)
        self.after = ResidualBlock(spec, ndim, width, width, rescale=rescale)

    def forward(self, h: Tensor, parts: Parts) -> Tensor:
        """(B, C, ...)."""
        y: Tensor = self.after(self.attend(self.before(h, next(parts))), next(parts))
        return y


class Up(nn.Module):
    """One level on the way up: takes from the end of `skips` what its counterpart left there."""

    def __init__(self, spec: UNet, data: DataSpec, level: int) -> None:
        super().__init__()
        ndim, widths, count = len(data.shape) - 1, spec.widths, spec.blocks + 1
        width, below, above = widths[level], widths[min(level + 1, len(widths) - 1)], spec.inside(level)
        carried = [below] + [width] * (count - 1)
        left = [width] * (count - 1) + [above]
        attends = spec.sizes(data)[level] in spec.attention
        each = [attends and (spec.attention_up == "each" or i == count - 1) for i in range(count)]
        self.blocks = nn.ModuleList(
            ResidualBlock(spec, ndim, a + b, width, rescale=spec.rescale) for a, b in zip(carried, left, strict=True)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(spec, width, rescale=spec.rescale) if here else nn.Identity() for here in each
        )
        self.image: nn.Module | None = None
        self.change: Double | None = None
        if level:
            if spec.progressive == "skips":
                self.image = Output(spec, ndim, width, data.shape[0])
            self.change = Double(spec, ndim, width)

    def forward(
        self, h: Tensor, output: Tensor | None, parts: Parts, skips: list[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The feature map, and the sum of the outputs so far."""
        if output is not None:
            output = double_filtered(output, h.shape[2:])
        for block, attend in zip(self.blocks, self.attentions, strict=True):
            h = attend(block(torch.cat([h, skips.pop()], dim=1), next(parts)))
        if self.image is not None:
            here = self.image(h)
            output = here if output is None else output + here
        if self.change is not None:
            h = self.change(h, skips[-1].shape[2:], parts)
        return h, output


class Output(nn.Module):
    """What the network, or a level, gives as output: conv(SiLU(norm(h)))."""

    def __init__(self, spec: UNet, ndim: int, width: int, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = Norm(spec, width), CONVOLUTIONS[ndim - 1](width, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, channels, ...)."""
        return self.norm.silu(h, self.conv)


class Halve(nn.Module):
    """Half the sides, as `resample` says."""

    def __init__(self, spec: UNet, ndim: int, width: int) -> None:
        super().__init__()
        self.conv = StridedConv(width, ndim, spec.pad_end) if spec.resample == "conv" else None
        self.block = _resampling_block(spec, ndim, width)
        self.resampling = halve_filtered if spec.resample == "residual-fir" else halve

    def forward(self, h: Tensor, parts: Parts) -> Tensor:
        """(B, C, ...)."""
        y: Tensor
        if self.conv is not None:
            y = self.conv(h)
        elif self.block is not None:
            y = self.block(h, next(parts), self.resampling)
        else:
            y = self.resampling(h)
        return y


class Double(nn.Module):
    """Twice the sides, as `resample` says, cut to the size that was halved."""

    def __init__(self, spec: UNet, ndim: int, width: int) -> None:
        super().__init__()
        self.conv = RepeatConv(width, ndim) if spec.resample == "conv" else None
        self.block = _resampling_block(spec, ndim, width)
        self.resampling = double_filtered if spec.resample == "residual-fir" else double

    def forward(self, h: Tensor, size: Sequence[int], parts: Parts) -> Tensor:
        """(B, C, *size)."""
        y: Tensor
        if self.conv is not None:
            y = self.conv(h, size)
        elif self.block is not None:
            y = self.block(h, next(parts), lambda x: self.resampling(x, size))
        else:
            y = self.resampling(h, size)
        return y


def _resampling_block(spec: UNet, ndim: int, width: int) -> ResidualBlock | None:
    if spec.resample not in ("residual", "residual-fir"):
        return None
    projects = spec.resample == "residual-fir" or spec.project_resampled
    return ResidualBlock(spec, ndim, width, width, rescale=spec.rescale, always_project=projects)


def initialise(net: ResidualUNet, zero: bool) -> None:
    """Uniform with variance 2 / (fan in + fan out), biases zero (DDPM); branches end in zeros where `zero`.

    A matrix that is several in one (queries, keys and values; what each block takes from the time) starts as those do.
    """
    parts: dict[nn.Module, list[int]] = {net.modulation: net.parts}
    for module in net.modules():
        if isinstance(module, AttentionBlock):
            parts[module.qkv] = [len(module.qkv.weight) // 3] * 3
    for module in net.modules():
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            for part in module.weight.detach().split(parts.get(module, [len(module.weight)])):
                nn.init.xavier_uniform_(part)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    if zero:
        for module in net.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv_2.weight)
            elif isinstance(module, AttentionBlock):
                nn.init.zeros_(module.out.weight)
            elif isinstance(module, Output):
                nn.init.zeros_(module.conv.weight)
