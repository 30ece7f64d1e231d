r"""The two blocks of a U-Net.

    residual    h = conv(SiLU(norm(x)));   y = (x' + conv(dropout(SiLU(norm(h + e))))) / r
                with e linear in the time embedding; where it scales and shifts, norm(h) (1 + e_1) + e_2 instead;
                x' is x, by a 1x1 convolution where the channels change; a block may resample both x and h
    attention   y = (x + W softmax(q k^T / sqrt(K)) v) / r,   (q, k, v) linear in norm(x), over all positions

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239, appendix B.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233,
    section 3.
    Large Scale GAN Training for High Fidelity Natural Image Synthesis (Brock et al., 2019),
    https://arxiv.org/abs/1809.11096, appendix B, for resampling inside a residual block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from itoflow.attention import attention
from itoflow_unet.norm import Norm
from itoflow_unet.resample import CONVOLUTIONS
from itoflow_unet.unet import UNet

Resampling = Callable[[Tensor], Tensor]


def unchanged(x: Tensor) -> Tensor:
    """x."""
    return x


class ResidualBlock(nn.Module):
    """(B, in, ...) and the block's part of the time embedding to (B, out, ...)."""

    def __init__(
        self, spec: UNet, ndim: int, inside: int, outside: int, *, rescale: float, always_project: bool = False
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[ndim - 1]
        self.norm_1, self.conv_1 = Norm(spec, inside), conv(inside, outside, 3, padding=1)
        self.norm_2, self.conv_2 = Norm(spec, outside), conv(outside, outside, 3, padding=1)
        self.project = conv(inside, outside, 1) if always_project or inside != outside else None
        self.scale_shift, self.dropout, self.rescale = spec.scale_shift, spec.dropout, rescale
        self.modulation = (1 + spec.scale_shift) * outside
        """Numbers that the block takes from the time embedding."""

    def forward(self, x: Tensor, e: Tensor, resampling: Resampling = unchanged) -> Tensor:
        """e: (B, modulation)."""
        h = self.norm_1.silu(x, lambda y: self.conv_1(resampling(y)))
        x = resampling(x)
        e = e.unflatten(1, (-1, *[1] * (x.ndim - 2)))
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self._second(F.silu(self.norm_2(h) * (1 + scale) + shift))
        else:
            h = self.norm_2.silu(h + e, self._second)
        y = h + (x if self.project is None else self.project(x))  # not in place: h is what hooks of conv_2 saw
        return y if self.rescale == 1 else y / self.rescale

    def _second(self, h: Tensor) -> Tensor:
        """conv(dropout(h))."""
        y: Tensor = self.conv_2(F.dropout(h, self.dropout, self.training and self.dropout > 0))
        return y


class Projection(nn.Linear):
    """W x + b of (B, C, N), positions last, as several maps of equally many channels."""

    def forward(self, x: Tensor, parts: int = 1) -> list[Tensor]:  # type: ignore[override]
        """`parts` of (B, out / parts, N)."""
        pairs = zip(self.weight.chunk(parts), self.bias.chunk(parts), strict=True)
        return [torch.baddbmm(bias[:, None], weight.expand(x.shape[0], -1, -1), x) for weight, bias in pairs]


class AttentionBlock(nn.Module):
    """(B, C, ...) to the same, every position attending to all."""

    def __init__(self, spec: UNet, channels: int, *, rescale: float, norm: bool = True) -> None:
        super().__init__()
        self.norm = Norm(spec, channels) if norm else None
        self.qkv, self.out = Projection(channels, 3 * channels), Projection(channels, channels)
        self.heads, self.rescale, self.backend = spec.heads_of(channels), rescale, spec.backend

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...)."""
        h = x.contiguous()  # positions together, as the products below are fastest
        if self.norm is not None:
            h = self.norm(h)
        q, k, v = (rearrange(part, "b (h k) n -> b h n k", h=self.heads) for part in self.qkv(h.flatten(2), parts=3))
        (h,) = self.out(rearrange(attention(q, k, v, backend=self.backend), "b h n k -> b (h k) n"))
        y: Tensor = x + h.unflatten(2, x.shape[2:])
        return y if self.rescale == 1 else y / self.rescale
