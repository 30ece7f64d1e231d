r"""Group normalisation, SiLU where it follows, and the convolution after them as one step that keeps its input only.

With mean m and 1 / standard deviation r of each example's groups, and u = x a + b per example and channel,

    a = r w,   b = w_0 - m a,   y = SiLU(u) = u sigmoid(u).

Forward, SiLU overwrites u, and in float32 y is not kept for the gradient of the convolution's weights. Backward, u is
computed again from x, m and r, one pass over the map, y from it where that gradient is due, and u is overwritten by
dy SiLU'(u), from which torch's normalisation goes on.

References:
    Group Normalization (Wu and He, 2018), https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itoflow_unet.layout import channels_together
from itoflow_unet.unet import UNet

WIDE = torch.float32, torch.float64
"""Dtypes for which normalising maps as they lie, channels together, and computing them again in place of keeping them,
is faster."""
FEW_POSITIONS = 1024
"""Of maps with fewer, torch takes up to eight times as long for narrow numbers, channels together, as for float32."""
FAR = 4.0
"""The largest |mean| / deviation for which torch's variance of maps with channels together, E[x^2] - E[x]^2, is good to
1e-5."""


class Norm(nn.GroupNorm):
    """Group normalisation by the options."""

    def __init__(self, spec: UNet, channels: int) -> None:
        super().__init__(spec.groups_of(channels), channels, eps=spec.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...)."""
        if x.dtype in WIDE and self._in_one_step(x):
            return self._step(x, silu=False)
        return super().forward(x.contiguous())  # positions together, as torch's second derivative needs them

    def silu(self, x: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
        """`then`, a convolution, of SiLU of the normalised x; see the module's formulas."""
        if not self._in_one_step(x):
            return then(F.silu(self(x)))
        y = self._step(x, silu=True)
        if y.grad_fn is None or y.dtype not in WIDE:
            return then(y)
        step, place, shape = y.grad_fn, y.data_ptr(), y.shape

        def keep(value: Tensor) -> Any:
            return step if value.data_ptr() == place and value.shape == shape else value

        with torch.autograd.graph.saved_tensors_hooks(keep, _again):
            return then(y)

    def _in_one_step(self, x: Tensor) -> bool:
        """Where that is faster: on a CPU, channels together; of narrow numbers, for a gradient only."""
        return channels_together(x) and (x.requires_grad if torch.is_grad_enabled() else x.dtype in WIDE)

    def _step(self, x: Tensor, silu: bool) -> Tensor:
        y: Tensor = _Norm.apply(x, self.weight, self.bias, self.num_groups, self.eps, silu)  # type: ignore[no-untyped-call]
        return y


class _Norm(torch.autograd.Function):
    """See the module's formulas, with SiLU or without."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        shape = x.shape[0], x.shape[1], x[0, 0].numel(), groups, eps
        widen = x.dtype not in WIDE and shape[2] < FEW_POSITIONS
        x_, weight_, bias_ = (value.float() if widen else value for value in (x, weight, bias))
        y, mean, r = torch.native_group_norm(x_, weight_, bias_, *shape)
        if not ((mean * r).abs() <= FAR).all():
            y, mean, r = torch.native_group_norm(x.contiguous(), weight, bias, *shape)
            y = y.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight, bias, mean, r)
        ctx.groups, ctx.eps, ctx.silu, ctx.left = groups, eps, silu, None
        return (F.silu(y, inplace=True) if silu else y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        left, ctx.left = ctx.left, None
        (x, weight, bias, mean, r), u = left or (ctx.saved_tensors, None)
        if torch.is_grad_enabled():  # it will be differentiated again
            y = F.group_norm(x.contiguous(), ctx.groups, weight, bias, ctx.eps)
            y = F.silu(y) if ctx.silu else y
            needed = ctx.needs_input_grad[:3]
            wanted = [value for value, need in zip((x, weight, bias), needed, strict=True) if need]
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            return (*(next(found) if need else None for need in needed), None, None, None)
        return (*_gradient(x, weight, bias, mean, r, u, dy, ctx.silu), None, None, None)


def _again(kept: Any) -> Tensor:
    """y of a `_Norm`, to which its saved tensors and u are left: its own backward pass is the next to need them.

    Those that torch.utils.checkpoint computes again can be asked for once only.
    """
    if isinstance(kept, Tensor):
        return kept
    with torch.no_grad():
        saved = kept.saved_tensors
        u = _normalised(*saved)
        kept.left = saved, u
        return F.silu(u)


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor) -> Tensor:
    """u."""
    a, m = (value.repeat_interleave(x.shape[1] // value.shape[1], dim=1) for value in (r, mean))  # (B, G) to (B, C)
    a = a * weight
    return torch.addcmul((bias - m * a)[:, :, None, None], x, a[:, :, None, None])


def _gradient(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor, u: Tensor | None, dy: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, dw_0), u overwritten; in float32 at least, which is faster than narrow numbers too."""
    given, wide = (x.dtype, weight.dtype, bias.dtype), torch.promote_types(x.dtype, torch.float32)
    x, weight, bias, mean, r, dy = (value.to(wide) for value in (x, weight, bias, mean, r, dy))
    g = dy.contiguous(memory_format=torch.channels_last)  # as x lies: torch takes either for the other without a word
    if silu:
        u = _normalised(x, weight, bias, mean, r) if u is None else u
        g = torch.ops.aten.silu_backward.grad_input(g, u, grad_input=u)
    shape = *x.shape[:2], x[0, 0].numel(), mean.shape[1]
    dx, dw, dw_0 = torch.ops.aten.native_group_norm_backward(g, x, mean, r, weight, *shape, [True, True, True])
    return dx.to(given[0]), dw.to(given[1]), dw_0.to(given[2])
