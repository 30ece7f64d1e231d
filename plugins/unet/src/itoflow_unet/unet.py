"""The options of a residual U-Net: one class for the DDPM, DDPM++, NCSN++ and ADM families, presets as its defaults.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239, appendix B.
    Score-Based Generative Modeling through SDEs (Song et al., 2021), https://arxiv.org/abs/2011.13456, appendix H.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233,
    section 3.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import FiniteFloat, model_validator
from torch import nn

from itoflow import Backbone, DataSpec, IncompatibleError

Positive = Annotated[FiniteFloat, Gt(0)]
Resample = Literal["conv", "pool", "residual", "residual-fir"]
Progressive = Literal["none", "skips", "residual"]


class UNet(Backbone):
    """Residual U-Net for signals (C, L), images (C, H, W) and volumes (C, D, H, W); class and vector conditions."""

    channels: Annotated[int, Ge(1)] = 128
    """Channels at full resolution."""
    multipliers: Annotated[tuple[Positive, ...], MinLen(1)] = (1, 2, 2, 2)
    """Channels of each level, over `channels`; each level halves the sides, odd ones rounded up."""
    entry: Annotated[int, Ge(1)] | None = None
    """Channels of the first convolution; None is those of the first level. EDM has `channels`."""
    blocks: Annotated[int, Ge(1)] = 2
    """Residual blocks of a level on the way down; one more on the way up."""
    attention: tuple[Annotated[int, Ge(1)], ...] = (16,)
    """Resolutions with attention: the longest side of the feature map, so 16 for maps of 16x16."""
    heads: Annotated[int, Ge(1)] | None = None
    """Number of attention heads; give this or `head_size`, or neither for one head."""
    head_size: Annotated[int, Ge(1)] | None = None
    """Channels of an attention head."""
    backend: str = "auto"
    """Attention backend by name; see `itoflow attention`."""
    resample: Resample = "conv"
    """How levels change: strided and nearest-neighbour convolutions, plain averaging and repetition, or residual blocks
    that average and repeat, or that filter by (1, 3, 3, 1)."""
    project_resampled: bool = False
    """Residual blocks that average and repeat pass their input through a 1x1 convolution, as in the score-SDE code;
    those that filter always do."""
    pad_end: bool = False
    """Strided convolutions pad the end of each side only, as the original DDPM code does."""
    progressive: Progressive = "none"
    """What the smaller levels see of the input: nothing but the feature map; `skips`, the filtered input by a 1x1
    convolution, and each level adds an output of its own; `residual`, the input carried on from level to level through
    the filter and 3x3 convolutions of stride 2, into which the feature map is added."""
    scale_shift: bool = False
    """Time scales and shifts the second normalisation of a block (ADM), or is added before it (DDPM)."""
    embedding: Annotated[int, Ge(1)] | None = None
    """Size of the embedding of time and condition; None is 4 `channels`."""
    time: Literal["sinusoidal", "fourier"] = "sinusoidal"
    """Features of the time: geometrically spaced frequencies, or random Gaussian ones."""
    time_scale: FiniteFloat = 1000.0
    """The features see time_scale t + time_shift: the step of a chain of 1000, or the log of a noise level."""
    time_shift: FiniteFloat = 0.0
    """See `time_scale`."""
    fourier_scale: Positive = 16.0
    """Standard deviation of the random frequencies, in turns per unit of time_scale t."""
    cosine_first: bool = True
    """Order of sinusoidal features."""
    frequency_shift: Annotated[int, Ge(0)] = 0
    """Sinusoidal frequency j of n is 10000^(-j / (n - frequency_shift)); the original DDPM code has 1."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability with which a hidden value of a residual block is dropped in training."""
    groups: Annotated[int, Ge(1)] | None = None
    """Groups of group normalisation; None is the largest divisor of the channels with 32 groups at most and 4 channels
    in a group at least."""
    epsilon: Positive = 1e-5
    """Added to the variance in group normalisation."""
    rescale: Positive = 1.0
    """Divides the sum of every residual block and its input; NCSN++ has sqrt(2)."""
    rescale_middle: Positive | None = None
    """The same for the middle of the network; None is `rescale`."""
    middle: bool = True
    """Residual block, attention, residual block between the two halves."""
    middle_attention: bool = True
    """The attention in the middle."""
    middle_norm: bool = True
    """Normalise the input of that attention."""
    attention_up: Literal["each", "last"] = "each"
    """Attention on the way up after each residual block, or after the last one of a level, as in NCSN++."""
    center: bool = False
    """Map inputs from [0, 1] to [-1, 1] first."""
    divide_output: bool = False
    """Divide the output by exp(time_scale t + time_shift), the noise level of a score network of NCSN++."""
    zero_init: bool = True
    """Start the last layer of each residual branch, and of the network, at zero."""

    @model_validator(mode="after")
    def _one_of_heads(self) -> UNet:
        if self.heads is not None and self.head_size is not None:
            raise ValueError("give heads or head_size, not both")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(round(self.channels * multiplier) for multiplier in self.multipliers)

    def inside(self, level: int) -> int:
        """Channels that enter a level."""
        return self.widths[level - 1] if level else self.entry or self.widths[0]

    def heads_of(self, channels: int) -> int:
        """Attention heads of a layer with that many channels."""
        if self.head_size is not None:
            return channels // self.head_size
        return self.heads or 1

    def groups_of(self, channels: int) -> int:
        """Groups of a normalisation of that many channels."""
        if self.groups is not None:
            return self.groups
        most = max(1, min(32, channels // 4))
        return next(n for n in range(most, 0, -1) if channels % n == 0)

    def sizes(self, data: DataSpec) -> tuple[int, ...]:
        """The longest side of the feature maps of each level."""
        side = max(data.shape[1:])
        return tuple(math.ceil(side / 2**level) for level in range(len(self.multipliers)))

    def build(self, data: DataSpec) -> nn.Module:
        """The network for that data.

        Raises:
            IncompatibleError: data that are no signal, image or volume, or too small for the number of levels; heads or
                groups that do not divide the channels.
        """
        from itoflow_unet.network import ResidualUNet

        self._check_size(data)
        self._check_channels(data)
        return ResidualUNet(self, data)

    def _check_size(self, data: DataSpec) -> None:
        if not 2 <= len(data.shape) <= 4:
            raise IncompatibleError(
                f"A U-Net needs examples of shape (C, L), (C, H, W) or (C, D, H, W). These have {data.shape}; the "
                "backbone 'mlp' takes any shape."
            )
        smallest, levels = min(data.shape[1:]), len(self.multipliers)
        needed = 2 ** (levels - 2) + 1 if levels > 1 else 1
        if smallest < needed:
            most = math.ceil(math.log2(smallest)) + 1
            raise IncompatibleError(
                f"A U-Net of {levels} levels halves every side {levels - 1} times, so sides must be at least {needed}. "
                f"These examples have {data.shape}: give {most} multipliers or fewer, e.g. {self.multipliers[:most]}, "
                f"or pad the examples to sides of {needed} or more."
            )

    def _check_channels(self, data: DataSpec) -> None:
        if min(self.widths) < 1:
            raise IncompatibleError(f"multipliers = {self.multipliers} leave no channel of {self.channels}.")
        if self.time == "sinusoidal" and self.frequency_shift >= max(1, self.channels // 2):
            raise IncompatibleError(
                f"{self.channels} channels give {self.channels // 2} frequencies of the time, and frequency_shift = "
                f"{self.frequency_shift} must be less. Use more channels, or frequency_shift = 0."
            )
        for width in (self.inside(0), *self.widths):
            if width % self.groups_of(width):
                raise IncompatibleError(
                    f"{width} channels do not divide into groups = {self.groups}. Leave `groups` out, or choose "
                    f"channels that are a multiple of {self.groups}."
                )
        for width, size in zip(self.widths, self.sizes(data), strict=True):
            attends = size in self.attention or (self.middle and self.middle_attention and width == self.widths[-1])
            split = self.head_size or self.heads or 1
            if attends and width % split:
                option = "head_size" if self.head_size else "heads"
                fit = [str(n) for n in range(1, width + 1) if width % n == 0]
                raise IncompatibleError(
                    f"Attention over {width} channels at resolution {size} cannot have {option} = {split}, which does "
                    f"not divide them. {option} may be {', '.join(fit)} there."
                )
