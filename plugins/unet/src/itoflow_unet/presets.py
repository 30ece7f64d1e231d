"""Named sets of options, as the papers have them; each is a `UNet` with other defaults.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239, appendix B.
    Score-Based Generative Modeling through SDEs (Song et al., 2021), https://arxiv.org/abs/2011.13456, appendix H.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233,
    section 3 and table 4.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Ge, Lt, MinLen

from itoflow_unet.unet import Positive, Progressive, Resample, UNet


class DDPM(UNet):
    """DDPM's network for CIFAR-10 (35.7 M parameters): four levels, attention at 16x16, dropout 0.1."""

    pad_end: bool = True
    cosine_first: bool = False
    frequency_shift: Annotated[int, Ge(0)] = 1
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    epsilon: Positive = 1e-6


class DDPMPP(UNet):
    """DDPM++ of the score-SDE paper for CIFAR-10 (61.8 M parameters): residual resampling, rescaled skips, attention
    once a level going up.

    blocks = 8 gives its deep variant. EDM's DDPM++ (55.7 M) has multipliers = (2, 2, 2) and entry = 128.
    """

    blocks: Annotated[int, Ge(1)] = 4
    resample: Resample = "residual"
    project_resampled: bool = True
    attention_up: Literal["each", "last"] = "last"
    frequency_shift: Annotated[int, Ge(0)] = 1
    cosine_first: bool = False
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    epsilon: Positive = 1e-6
    rescale: Positive = math.sqrt(2)


class NCSNPP(DDPMPP):
    """NCSN++ of the score-SDE paper for CIFAR-10 (62.8 M parameters): Fourier features, filtered resampling, the input
    carried on beside the feature map.

    The paper's networks for larger images have progressive = "skips".
    """

    resample: Resample = "residual-fir"
    progressive: Progressive = "residual"
    time: Literal["sinusoidal", "fourier"] = "fourier"
    time_scale: float = math.log(50 / 0.01)
    """The features see log sigma(t) = time_scale t + time_shift, here of the variance-exploding process of CIFAR-10."""
    time_shift: float = math.log(0.01)


class ADM(UNet):
    """ADM, the ablated diffusion model, for ImageNet at 64x64 (296 M parameters with its 1000 classes): attention at
    32, 16, 8 with heads of 64, scale and shift by time.

    The larger ones have channels = 256, blocks = 2 and dropout = 0, and multipliers (1, 1, 2, 3, 4) at 128x128 (422 M),
    (1, 1, 2, 2, 4, 4) at 256x256 (554 M), (0.5, 1, 1, 2, 2, 4, 4) at 512x512 (559 M).
    """

    channels: Annotated[int, Ge(1)] = 192
    multipliers: Annotated[tuple[Positive, ...], MinLen(1)] = (1, 2, 3, 4)
    blocks: Annotated[int, Ge(1)] = 3
    attention: tuple[Annotated[int, Ge(1)], ...] = (32, 16, 8)
    head_size: Annotated[int, Ge(1)] | None = 64
    resample: Resample = "residual"
    scale_shift: bool = True
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1


class Small(UNet):
    """For images of 8x8 to 28x28 on a CPU: two levels of 32 and 64 channels, attention at the smaller."""

    channels: Annotated[int, Ge(1)] = 32
    multipliers: Annotated[tuple[Positive, ...], MinLen(1)] = (1, 2)
    blocks: Annotated[int, Ge(1)] = 1
    attention: tuple[Annotated[int, Ge(1)], ...] = ()
