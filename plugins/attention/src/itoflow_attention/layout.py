"""What kernels ask of strides, and of a bias, which itoflow's interface lets broadcast to (B, H, N, M) in any way."""

from __future__ import annotations

import torch
from torch import Tensor


def rows(x: Tensor, step: int = 1) -> Tensor:
    """x with last stride 1 and the other strides and its start multiples of `step`; copied only where it is not so.

    A copy, and not `contiguous()`: that keeps any stride of an axis of size 1, and kernels look at all of them.
    """
    lies_right = x.stride(-1) == 1
    if step > 1:
        lies_right = lies_right and all(s % step == 0 for s in (*x.stride()[:-1], x.storage_offset()))
    return x if lies_right else x.clone(memory_format=torch.contiguous_format)


def four(bias: Tensor) -> Tensor:
    """With leading axes of size 1, so that it has four."""
    return bias[(None,) * (4 - bias.ndim)]


def over_keys(bias: Tensor, keys: int) -> Tensor:
    """Four axes, the last of size M and stride 1: no kernel reads a last axis that repeats one number."""
    bias = four(bias)
    return rows(bias.expand(*bias.shape[:3], keys))
