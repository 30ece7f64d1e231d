"""Tensors that stand for those of a call, for libraries that judge tensors: the right shapes, in next to no memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from itoflow import AttentionCall


def probes(call: AttentionCall, layout: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v in the layout given, and a bias of all of (B, H, N, M), each one row or number repeated with stride 0."""

    def one(shape: tuple[int, ...], stored: int, gradient: bool) -> Tensor:
        row = torch.empty(1, 1, 1, stored, dtype=call.dtype, device=call.device)
        return row.requires_grad_(gradient).as_strided(shape, (0, 0, 0, 1))

    q, k, v = (layout(one(shape, shape[3], call.gradient)) for shape in (call.query, call.key, call.value))
    if call.bias is None:
        return q, k, v, None
    keys = call.key[2]
    return q, k, v, one((*call.query[:3], keys), keys, call.bias_gradient)
