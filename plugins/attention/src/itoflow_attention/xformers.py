r"""xformers' memory_efficient_attention, on CUDA devices and only when it is named.

Its contract, from the documentation of xformers 0.0.35, against that of itoflow:

    xformers   q [B, N, H, K], k [B, M, H, K], v [B, M, H, V]; last stride 1, the others multiples of 16 bytes;
               bias exactly [B, H, N, M], each row at a multiple of 16 bytes; nothing broadcasts; no float64
    itoflow    q (B, H, N, K), k (B, H, M, K), v (B, H, M, V), any strides; bias broadcasts to (B, H, N, M)

Which kernel takes a call is asked of xformers itself, `operator.not_supported_reasons(Inputs(...))` for every operator:
`is_available()` is true also where the wheel and torch were built for different CUDA versions and none can run. The
first pair that takes it (forward, and backward where there is a gradient) is then named in the call, so that the
answer and the call cannot differ.

Upstream, these kernels move to the package `mslk`, whose `mslk.attention.fmha` has the same names: a backend for it is
a subclass of `Fmha` with another `module`.

References:
    xFormers (Lefaudeux et al., 2022), https://github.com/facebookresearch/xformers.
    Self-attention Does Not Need O(n^2) Memory (Rabe & Staats, 2021), https://arxiv.org/abs/2112.05682.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from itoflow import Attention, AttentionCall, IncompatibleError
from itoflow_attention.layout import over_keys, rows
from itoflow_attention.probe import probes

_FASTEST_FIRST = ("flash3", "cutlass_blackwell", "flash", "cutlass", "ck")
"""Modules of the operators; any others come after these."""

_ALIGNMENT = 16
"""Bytes."""


class Fmha(Attention):
    """A library with xformers' interface `fmha`."""

    preference: ClassVar[int] = -10  # below `math`, which takes every call: `auto` imports no optional library
    library: ClassVar[str]
    module: ClassVar[str]
    install: ClassVar[str]

    def supports(self, call: AttentionCall) -> tuple[str, ...]:
        """The device first; only on a CUDA device is the library imported, and its operators asked."""
        if call.device.type != "cuda":
            return (f"{self.library} needs a CUDA device; this call is on {call.device.type}",)
        reasons = []
        if call.second_order:
            reasons.append(f"{self.library} has no second and no forward-mode derivative")
        if call.dtype == torch.float64:
            reasons.append(f"{self.library} has no float64")
        if reasons:
            return tuple(reasons)
        try:
            importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name not in _parents(self.module):
                return (f"{self.library} cannot be imported: {error}",)
            return (f"{self.library} is not installed: {self.install}",)
        except Exception as error:
            return (f"{self.library} cannot be imported: {type(error).__name__}: {error}",)
        found = operators(self.module, call, torch.are_deterministic_algorithms_enabled())
        return () if isinstance(found, tuple) else tuple(found)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> Tensor:
        """See `itoflow.Attention`."""
        call = AttentionCall.of(q, k, v, bias, dropout, scale)
        found = operators(self.module, call, torch.are_deterministic_algorithms_enabled())
        if isinstance(found, list):
            raise IncompatibleError(f"{self.library} has no operator for this call: {'; '.join(found)}.")
        nothing = None
        if bias is not None:
            bias, nothing = _bias(bias, q, k)
        if call.bias_gradient and not (q.requires_grad or k.requires_grad or v.requires_grad):
            q = q.detach().requires_grad_()  # without one, xformers forgets the gradient of the bias
        fmha: Any = importlib.import_module(self.module)
        out: Tensor = fmha.memory_efficient_attention(*map(_heads_inside, (q, k, v)), bias, dropout, scale, op=found)
        out = out.transpose(1, 2)
        return out if nothing is None else out.masked_fill(nothing, 0)


class Xformers(Fmha):
    """xformers' memory-efficient attention: flash, CUTLASS and their kin, on CUDA devices, when named."""

    library: ClassVar[str] = "xformers"
    module: ClassVar[str] = "xformers.ops.fmha"
    install: ClassVar[str] = "pip install 'itoflow-attention[xformers]'"


def _parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[: i + 1]) for i in range(len(parts))}


@lru_cache(maxsize=256)
def operators(module: str, call: AttentionCall, deterministic: bool) -> tuple[Any, Any] | list[str]:
    """The forward and backward operator for a call, or the reasons of all of them, which depend on torch's mode too."""
    fmha: Any = importlib.import_module(module)
    q, k, v, bias = probes(call, lambda x: x.transpose(1, 2))
    inputs = fmha.Inputs(query=q, key=k, value=v, attn_bias=bias, p=call.dropout, scale=call.scale)
    refused = []
    for forward, backward in _pairs(fmha):
        reasons = list(forward.not_supported_reasons(inputs))
        if call.gradient and backward is None:
            reasons.append("it has no backward pass")
        elif call.gradient:
            reasons += [r for r in backward.not_supported_reasons(inputs) if r not in reasons]
        if not reasons:
            return forward, backward if call.gradient else None
        refused.append(f"{forward.NAME}: {', '.join(' '.join(reason.split()) for reason in reasons)}")
    return refused or ["it offers no operator"]


def _pairs(fmha: Any) -> Iterator[tuple[Any, Any]]:
    """Forward operators, each with the backward operator of its module: dropout needs both to draw one mask."""
    backward = {operator.__module__: operator for operator in fmha.ALL_BW_OPS}

    def place(operator: Any) -> int:
        name = operator.__module__.rpartition(".")[2]
        return _FASTEST_FIRST.index(name) if name in _FASTEST_FIRST else len(_FASTEST_FIRST)

    for operator in sorted(fmha.ALL_FW_OPS, key=place):
        yield operator, backward.get(operator.__module__)


def _heads_inside(x: Tensor) -> Tensor:
    """(B, H, N, K) to [B, N, H, K], aligned."""
    return rows(x.transpose(1, 2), _ALIGNMENT // x.element_size())


def _bias(bias: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The bias as [B, H, N, M], each row aligned, and where it leaves a query nothing to attend to.

    For the kernels, -inf becomes half the lowest number, so that such a query has a finite value and gradient, which
    the caller then replaces by zeros; the weight of any other -inf is exactly 0 as before.
    """
    keys = k.shape[2]
    bias = over_keys(bias, keys)
    nothing = (bias == -torch.inf).all(-1, keepdim=True)
    step = _ALIGNMENT // bias.element_size()
    padded = torch.nn.functional.pad(bias, (0, math.ceil(keys / step) * step - keys))
    padded = rows(padded.clamp_min(torch.finfo(bias.dtype).min / 2), step)
    return padded[..., :keys].expand(*q.shape[:3], keys), nothing
