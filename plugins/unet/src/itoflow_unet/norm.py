r"""Group normalisation and SiLU as one step that keeps its input only.

With mean m and 1 / standard deviation r of each example's groups, and u = x a + b per example and channel,

    a = r w,   b = w_0 - m a,   y = SiLU(u) = u sigmoid(u).

Forward, SiLU overwrites u; backward, u is computed again from x, m and r, one pass over the map, and overwritten by
dy SiLU'(u), from which torch's normalisation goes on.

References:
    Group Normalization (Wu and He, 2018), https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itoflow_unet.unet import UNet


class Norm(nn.GroupNorm):
    """Group normalisation by the options."""

    def __init__(self, spec: UNet, channels: int) -> None:
        super().__init__(spec.groups_of(channels), channels, eps=spec.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...); positions together in memory, as torch's second derivative needs them."""
        return super().forward(x.contiguous())

    def silu(self, x: Tensor) -> Tensor:
        """SiLU of the normalised x, in one step where that is faster: on a CPU, channels together, for a gradient."""
        together = x.ndim == 4 and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
        if together and torch.is_grad_enabled() and x.requires_grad and not _transformed():
            y: Tensor = _NormSiLU.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-untyped-call]
            return y
        return F.silu(self(x))


class _NormSiLU(torch.autograd.Function):
    """See the module's formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        shape = x.shape[0], x.shape[1], x[0, 0].numel(), groups, eps
        y, mean, r = torch.native_group_norm(x, weight, bias, *shape)
        ctx.save_for_backward(x, weight, bias, mean, r)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, r = ctx.saved_tensors
        if torch.is_grad_enabled():  # it will be differentiated again
            y = F.silu(F.group_norm(x.contiguous(), ctx.groups, weight, bias, ctx.eps))
            return (*torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True), None, None)
        return (*_gradient(x, weight, bias, mean, r, dy), None, None)


def _gradient(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, dw_0); in float32 at least, which is faster than narrow numbers too."""
    given, wide = (x.dtype, weight.dtype, bias.dtype), torch.promote_types(x.dtype, torch.float32)
    x, weight, bias, mean, r, dy = (value.to(wide) for value in (x, weight, bias, mean, r, dy))
    (examples, channels), groups = x.shape[:2], mean.shape[1]

    def per_channel(value: Tensor) -> Tensor:  # (B, G) to (B, C)
        return value.repeat_interleave(channels // groups, dim=1)

    a = per_channel(r) * weight
    b = bias - per_channel(mean) * a
    u = torch.addcmul(b[:, :, None, None], x, a[:, :, None, None])
    g = torch.ops.aten.silu_backward.grad_input(dy, u, grad_input=u)
    shape = examples, channels, x[0, 0].numel(), groups
    dx, dw, dw_0 = torch.ops.aten.native_group_norm_backward(g, x, mean, r, weight, *shape, [True, True, True])
    return dx.to(given[0]), dw.to(given[1]), dw_0.to(given[2])


def _transformed() -> bool:
    """Inside torch.compile, torch.func or forward-mode differentiation, which see through plain steps only."""
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None
