r"""Group normalisation, SiLU and the convolution after them as one step that keeps its input only.

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

from itoflow.transforms import under_func
from itoflow_unet.unet import UNet


class Norm(nn.GroupNorm):
    """Group normalisation by the options."""

    def __init__(self, spec: UNet, channels: int) -> None:
        super().__init__(spec.groups_of(channels), channels, eps=spec.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...); positions together in memory, as torch's second derivative needs them."""
        return super().forward(x.contiguous())

    def silu(self, x: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
        """`then`, a convolution, of SiLU of the normalised x; see the module's formulas.

        In one step where that is faster: on a CPU, channels together, for a gradient.
        """
        plain = transformed() or not torch.is_grad_enabled() or not x.requires_grad or x.device.type != "cpu"
        if plain or x.ndim != 4 or not x.is_contiguous(memory_format=torch.channels_last):
            return then(F.silu(self(x)))
        y: Tensor = _NormSiLU.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-untyped-call]
        if y.dtype not in (torch.float32, torch.float64):  # as quick to keep as to compute
            return then(y)
        step, place, shape = y.grad_fn, y.data_ptr(), y.shape

        def keep(value: Tensor) -> Any:
            return step if value.data_ptr() == place and value.shape == shape else value

        with torch.autograd.graph.saved_tensors_hooks(keep, _again):
            return then(y)


class _NormSiLU(torch.autograd.Function):
    """See the module's formulas."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        shape = x.shape[0], x.shape[1], x[0, 0].numel(), groups, eps
        y, mean, r = torch.native_group_norm(x, weight, bias, *shape)
        ctx.save_for_backward(x, weight, bias, mean, r)
        ctx.groups, ctx.eps, ctx.left = groups, eps, None
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        left, ctx.left = ctx.left, None
        (x, weight, bias, mean, r), u = left or (ctx.saved_tensors, None)
        if torch.is_grad_enabled():  # it will be differentiated again
            y = F.silu(F.group_norm(x.contiguous(), ctx.groups, weight, bias, ctx.eps))
            return (*torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True), None, None)
        return (*_gradient(x, weight, bias, mean, r, u, dy), None, None)


def _again(kept: Any) -> Tensor:
    """y of a `_NormSiLU`, to which its saved tensors and u are left: its own backward pass is the next to need them.

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
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor, u: Tensor | None, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, dw_0), u overwritten; in float32 at least, which is faster than narrow numbers too."""
    given, wide = (x.dtype, weight.dtype, bias.dtype), torch.promote_types(x.dtype, torch.float32)
    x, weight, bias, mean, r, dy = (value.to(wide) for value in (x, weight, bias, mean, r, dy))
    u = _normalised(x, weight, bias, mean, r) if u is None else u
    g = torch.ops.aten.silu_backward.grad_input(dy, u, grad_input=u)
    shape = *x.shape[:2], x[0, 0].numel(), mean.shape[1]
    dx, dw, dw_0 = torch.ops.aten.native_group_norm_backward(g, x, mean, r, weight, *shape, [True, True, True])
    return dx.to(given[0]), dw.to(given[1]), dw_0.to(given[2])


def transformed() -> bool:
    """Inside torch.compile, torch.func or forward-mode differentiation, which see through plain steps only."""
    return torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0 or under_func()
