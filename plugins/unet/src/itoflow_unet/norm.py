r"""Group normalisation and SiLU as one step that keeps its input only.

With mean m and 1 / standard deviation r of each example's groups, and u = x a + b per example and channel,

    a = r w,   b = w_0 - m a,   y = SiLU(u) = u sigmoid(u).

Forward, SiLU overwrites u; backward, u is computed again from x, m and r, one pass over the map, and overwritten by
g = dy SiLU'(u). With x^ = (x - m) r and sums over positions,

    dw = sum g x^,   dw_0 = sum g,   dx = a g - r / (N D) (sum over the group's D channels of w dw_0 + x^ w dw).

x may come in parts, as a skip does: they are normalised together and never lie in memory as one.

References:
    Group Normalization (Wu and He, 2018), https://arxiv.org/abs/1803.08494.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itoflow_unet.unet import UNet

SMALL, LARGE = 256, 1024
"""Positions from which parts are not joined before, and from which torch's own backward pass is the slower one."""


class Norm(nn.GroupNorm):
    """Group normalisation by the options."""

    def __init__(self, spec: UNet, channels: int) -> None:
        super().__init__(spec.groups_of(channels), channels, eps=spec.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...); positions together in memory, as torch's second derivative needs them."""
        return super().forward(x.contiguous())

    def silu(self, *parts: Tensor) -> Tensor:
        """SiLU of the normalised x, given in parts of (B, C_i, ...), in one step where that is faster: see `joins`."""
        if self.joins(*parts):
            y: Tensor = _NormSiLU.apply(self.weight, self.bias, self.num_groups, self.eps, *parts)  # type: ignore[no-untyped-call]
            return y
        return F.silu(self(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)))

    def joins(self, *parts: Tensor) -> bool:
        """On a CPU, channels together, for a gradient; more than one part in full precision only, and not tiny ones."""
        if not torch.is_grad_enabled() or _transformed() or not any(x.requires_grad for x in parts):
            return False
        if len(parts) > 1 and (parts[0].dtype != torch.float32 or parts[0][0, 0].numel() < SMALL):
            return False
        return all(
            x.ndim == 4 and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last) for x in parts
        )


class _NormSiLU(torch.autograd.Function):
    """See the module's formula."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, groups: int, eps: float, *parts: Tensor) -> Tensor:
        if len(parts) == 1:
            (x,) = parts
            shape = x.shape[0], x.shape[1], x[0, 0].numel(), groups, eps
            y, mean, r = torch.native_group_norm(x, weight, bias, *shape)
        else:
            mean, r = _moments(parts, groups, eps)
            scale = _Scale(parts, weight, bias, mean, r)
            y = torch.empty(*scale.a.shape, *parts[0].shape[2:], memory_format=torch.channels_last)
            for x, a, b, out in zip(parts, scale.of(scale.a), scale.of(scale.b), scale.of(y), strict=True):
                torch.addcmul(b, x, a, out=out)
        ctx.save_for_backward(weight, bias, mean, r, *parts)
        ctx.groups, ctx.eps = groups, eps
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, mean, r, *parts = ctx.saved_tensors
        if torch.is_grad_enabled():  # it will be differentiated again
            y = F.silu(F.group_norm(torch.cat(parts, dim=1).contiguous(), ctx.groups, weight, bias, ctx.eps))
            dw, dw_0, *dx = torch.autograd.grad(y, (weight, bias, *parts), dy, create_graph=True)
        else:
            dw, dw_0, *dx = _gradient(weight, bias, mean, r, parts, dy)
        return (dw, dw_0, None, None, *dx)


class _Scale:
    """a and b of the module's formula, (B, C), and their parts."""

    def __init__(self, parts: Sequence[Tensor], weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor) -> None:
        self.sizes = [x.shape[1] for x in parts]
        self.members = len(weight) // mean.shape[1]
        self.mean, self.r = self.per_channel(mean), self.per_channel(r)
        self.a = self.r * weight
        self.b = bias - self.mean * self.a

    def per_channel(self, value: Tensor) -> Tensor:
        """(B, G) to (B, C)."""
        return value.repeat_interleave(self.members, dim=1)

    def per_group(self, value: Tensor) -> Tensor:
        """The mean over the channels of a group: (B, C) to (B, G)."""
        return value.view(len(value), -1, self.members).mean(2)

    def of(self, value: Tensor) -> Sequence[Tensor]:
        """The parts of (B, C) as (B, C_i, 1, 1), or of a map."""
        return torch.split(value if value.ndim == 4 else value[:, :, None, None], self.sizes, dim=1)


def _moments(parts: Sequence[Tensor], groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """m and r, (B, G), from the mean and the variance of each channel."""
    each = [[torch.batch_norm_update_stats(example, None, None, 0.0) for example in x.split(1)] for x in parts]
    mean, var = (torch.cat([torch.stack([pair[i] for pair in part]) for part in each], dim=1) for i in (0, 1))
    mean, var = mean.unflatten(1, (groups, -1)), var.unflatten(1, (groups, -1))
    m = mean.mean(2)
    return m, (var + (mean - m[:, :, None]).square()).mean(2).add_(eps).rsqrt_()


def _gradient(
    weight: Tensor, bias: Tensor, mean: Tensor, r: Tensor, parts: Sequence[Tensor], dy: Tensor
) -> list[Tensor]:
    """dw, dw_0, and dx in parts; in float32 at least, which is faster than narrow numbers too."""
    given, wide = (weight.dtype, bias.dtype, *(x.dtype for x in parts)), torch.promote_types(dy.dtype, torch.float32)
    weight, bias, mean, r, dy, *parts = (value.to(wide) for value in (weight, bias, mean, r, dy, *parts))
    scale = _Scale(parts, weight, bias, mean, r)
    gradients = []
    for x, a, b, dy_i in zip(parts, scale.of(scale.a), scale.of(scale.b), scale.of(dy), strict=True):
        u = torch.addcmul(b, x, a)
        gradients.append(torch.ops.aten.silu_backward.grad_input(dy_i, u, grad_input=u))
    if len(parts) == 1 and parts[0][0, 0].numel() < LARGE:
        (x,), (g,) = parts, gradients
        shape = *x.shape[:2], x[0, 0].numel(), mean.shape[1]
        dx, dw, dw_0 = torch.ops.aten.native_group_norm_backward(g, x, mean, r, weight, *shape, [True, True, True])
        every = [dw, dw_0, dx]
    else:
        every = _by_channel(scale, weight, parts, gradients)
    return [value.to(dtype) for value, dtype in zip(every, given, strict=True)]


def _by_channel(scale: _Scale, weight: Tensor, parts: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """dw, dw_0, dx of the normalisation: two passes, of which the first gives sums for each example and channel."""
    one = torch.ones_like(weight)
    rows = zip(parts, gradients, scale.of(scale.mean), scale.of(scale.r), strict=True)
    sums = []
    for x, g, mean, r in rows:
        examples = zip(g.split(1), x.split(1), mean.flatten(1), r.flatten(1), strict=True)
        sums.append([_sums(*example, one[: x.shape[1]]) for example in examples])
    dw, dw_0 = (torch.cat([torch.stack([pair[i] for pair in part]) for part in sums], dim=1) for i in (0, 1))
    n = parts[0][0, 0].numel()
    p = scale.per_channel(scale.per_group(dw * weight)) * scale.r.square() / -n
    q = scale.per_channel(scale.per_group(dw_0 * weight)) * scale.r / -n - scale.mean * p
    dx = []
    for x, g, a, p_i, q_i in zip(parts, gradients, *map(scale.of, (scale.a, p, q)), strict=True):
        dx.append(torch.addcmul(q_i, x, p_i).addcmul_(g, a))
    return [dw.sum(0), dw_0.sum(0), *dx]


def _sums(g: Tensor, x: Tensor, mean: Tensor, r: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
    """sum g (x - m) r and sum g over positions, (C,), of one example, as batch norm would have them."""
    wanted = [False, True, True]
    _, dw, dw_0 = torch.ops.aten.native_batch_norm_backward(g, x, one, None, None, mean, r, True, 0.0, wanted)
    return dw, dw_0


def _transformed() -> bool:
    """Inside torch.compile, torch.func or forward-mode differentiation, which see through plain steps only."""
    if torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0:
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None
