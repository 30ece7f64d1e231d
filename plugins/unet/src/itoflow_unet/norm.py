r"""Group normalisation and SiLU as one step that keeps its input only.

With mean m and 1 / standard deviation r of each example's groups, and u = x a + b per example and channel,

    a = r w,   b = w_0 - m r w,   y = SiLU(u) = u sigmoid(u).

Backward, u is computed again; with g = dy SiLU'(u), n elements in a group and sums over each example's group,

    dx = a g - r (x_hat sum(x_hat w g) + sum(w g)) / n,   x_hat = (x - m) r,   dw = sum(x_hat g),   dw_0 = sum(g).

torch's own backward pass is several times slower than this on feature maps whose channels lie together in memory.

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
    """(dx, dw, dw_0); sums over positions come first, so that all else is per channel or one pass over the map."""
    examples, groups = mean.shape
    sides = tuple(range(2, x.ndim))

    def per_channel(value: Tensor) -> Tensor:  # (B, G) to (B, C)
        return value.repeat_interleave(x.shape[1] // groups, dim=1)

    def over(value: Tensor) -> Tensor:  # (B, C) to a factor of the map
        return value.to(x.dtype if x.dtype == torch.float64 else torch.float32)[:, :, None, None]

    mean_c, r_c = per_channel(mean.to(weight.dtype)), per_channel(r.to(weight.dtype))
    a = r_c * weight
    u = torch.addcmul(over(bias - mean_c * a), x, over(a))
    g = torch.ops.aten.silu_backward(dy.to(u.dtype), u)
    sum_g = g.sum(sides)
    sum_gx = torch.mul(g, x, out=u).sum(sides)
    sum_g_hat = (sum_gx - mean_c * sum_g) * r_c  # sum of x_hat g
    n = x[0, 0].numel() * (x.shape[1] // groups)
    in_group = (sum_g * weight).view(examples, groups, -1).sum(2) / n
    in_group_hat = (sum_g_hat * weight).view(examples, groups, -1).sum(2) / n
    slope = -r_c * r_c * per_channel(in_group_hat)
    offset = -r_c * per_channel(in_group) - slope * mean_c
    dx = torch.addcmul(over(offset), x, over(slope)).addcmul_(g, over(a))
    return dx.to(x.dtype), sum_g_hat.sum(0).to(weight.dtype), sum_g.sum(0).to(bias.dtype)


def _transformed() -> bool:
    """Inside torch.compile, torch.func or forward-mode differentiation, which see through plain steps only."""
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None
