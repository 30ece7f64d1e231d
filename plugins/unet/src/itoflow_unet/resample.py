r"""Halving and doubling of feature maps: (B, C, n) to ceil(n / 2) and back, along each of one to three sides.

Without weights: the mean of 2 and repetition, or the filter k = (1, 3, 3, 1) / 8,

    down:  y_j = sum_m k_m x_(2 j + m - 1)            up:  y = 2 sum_i k_(j - 2 i + 1) x_i,

zero outside, per side. Odd sides count as if one element longer: the mean of a lone last element is itself, the filter
sees a zero more; doubling is cut to the side that was halved.

References:
    Making Convolutional Networks Shift-Invariant Again (Zhang, 2019), https://arxiv.org/abs/1904.11486.
    Analyzing and Improving the Image Quality of StyleGAN (Karras et al., 2020), https://arxiv.org/abs/1912.04958,
    appendix B, for the filter in resampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itoflow_unet.winograd import Conv2d

CONVOLUTIONS = (nn.Conv1d, Conv2d, nn.Conv3d)
_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def halve(x: Tensor) -> Tensor:
    """Means of pairs."""
    y: Tensor = _POOLS[x.ndim - 3](x, 2, ceil_mode=True)
    return y


def double(x: Tensor, size: Sequence[int]) -> Tensor:
    """Each element twice, cut to `size`."""
    return F.interpolate(x, size=tuple(size), mode="nearest")


def halve_filtered(x: Tensor) -> Tensor:
    """Filtered by k, every second value kept."""
    padding = [side for n in reversed(x.shape[2:]) for side in (1, 1 + n % 2)]
    y: Tensor = _CONVOLVE[x.ndim - 3](F.pad(x, padding), _kernel(x, 1 / 8), stride=2, groups=x.shape[1])
    return y


def double_filtered(x: Tensor, size: Sequence[int]) -> Tensor:
    """Zeros between the values, filtered by 2 k, cut to `size`."""
    y: Tensor = _TRANSPOSED[x.ndim - 3](x, _kernel(x, 1 / 4), stride=2, padding=1, groups=x.shape[1])
    for axis, n in enumerate(size, start=2):
        y = y.narrow(axis, 0, n)
    return y


def _kernel(x: Tensor, scale: float) -> Tensor:
    """(C, 1, 4, ...): the same filter for every channel, an outer product over the sides."""
    k = scale * torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device)
    outer = reduce(lambda a, b: a[..., None] * b, [k] * (x.ndim - 2))
    return outer.expand(x.shape[1], 1, *outer.shape)


class StridedConv(nn.Module):
    """A convolution of width 3 and stride 2: ceil(n / 2) on each side."""

    def __init__(self, channels: int, ndim: int, pad_end: bool) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[ndim - 1](channels, channels, 3, stride=2, padding=0 if pad_end else 1)
        self.pad_end = pad_end

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...)."""
        if self.pad_end:
            x = F.pad(x, [side for n in reversed(x.shape[2:]) for side in (0, 1 + n % 2)])
        y: Tensor = self.conv(x)
        return y


class FilteredConv(nn.Module):
    """The filter k at every value, then a convolution of width 3 and stride 2: ceil(n / 2) on each side."""

    def __init__(self, inside: int, outside: int, ndim: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[ndim - 1](inside, outside, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, ...) to (B, outside, ...)."""
        padding = [side for n in reversed(x.shape[2:]) for side in (2, 2 + n % 2)]
        x = _CONVOLVE[x.ndim - 3](F.pad(x, padding), _kernel(x, 1 / 8), groups=x.shape[1])
        y: Tensor = self.conv(x)
        return y


class RepeatConv(nn.Module):
    """Repetition to twice the side, then a convolution of width 3."""

    def __init__(self, channels: int, ndim: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[ndim - 1](channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C, *size)."""
        wide = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        whole = tuple(size) == tuple(2 * n for n in x.shape[2:])
        if wide and whole and not torch.is_autocast_enabled("cpu") and _plain(self.conv):
            return _repeated(x, self.conv.weight, self.conv.bias)
        y: Tensor = self.conv(double(x, size))
        return y


def _plain(conv: nn.Module) -> bool:
    """Whether its weights say all that it does: nobody has wrapped, hooked, pruned or parametrised it."""
    hooks = conv._forward_hooks, conv._forward_pre_hooks, conv._backward_hooks, conv._backward_pre_hooks
    return type(conv) in CONVOLUTIONS and "weight" in conv._parameters and not any(hooks)


def _repeated(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution by w (C', C, 3, ...) of x (B, C, n, ...) repeated to twice the side, without repeating it.

    Along each side x_i has a part in y_(2 i + s - 1), s from 0 to 3, by those w_k that its two copies meet there:
    w_(2 - s) + w_(3 - s), one of both where there is no other. So it is a transposed convolution of width 4 and
    stride 2, with 2.25 times fewer products on an image.
    """
    sums = w.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    for _ in range(x.ndim - 2):
        w = w.movedim(2, -1) @ sums.T
    y: Tensor = _TRANSPOSED[x.ndim - 3](x, w.transpose(0, 1), stride=2, padding=1)
    return y if bias is None else y.add_(bias.unflatten(0, (-1, *[1] * (x.ndim - 2))))
