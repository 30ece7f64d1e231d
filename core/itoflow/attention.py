"""Attention backends: softmax(q k^T scale + bias) v by several implementations, and the choice among them.

A backend is chosen outside the model, by name. `auto` takes the first installed backend that is exact and supports
the call; a backend that the user names never falls back silently.

References:
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762, equation 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from itoflow import registry
from itoflow.errors import IncompatibleError, InputError, ItoflowError
from itoflow.spec import Spec

_second_order: ContextVar[bool] = ContextVar("itoflow_second_order", default=False)


@dataclass(frozen=True)
class AttentionCall:
    """What is asked of a backend.

    Arguments:
        query, key, value: shapes (B, H, N, K), (B, H, M, K), (B, H, M, V).
        dtype, device: of all three.
        bias: shape of an additive bias that broadcasts to (B, H, N, M), or None.
        dropout: probability in [0, 1).
        second_order: the result will be differentiated twice, or in forward mode.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    bias: tuple[int, ...] | None = None
    dropout: float = 0.0
    second_order: bool = False

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> AttentionCall:
        """The call with these tensors, inside or outside of `second_order`.

        Raises:
            InputError: the shapes, dtypes or devices do not fit together, or dropout is out of range.
        """
        shapes = tuple(q.shape), tuple(k.shape), tuple(v.shape)
        if not (q.ndim == k.ndim == v.ndim == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]):
            raise InputError(
                f"Attention takes q, k, v of shapes (B, H, N, K), (B, H, M, K), (B, H, M, V). Given: {shapes}."
            )
        if q.shape[3] != k.shape[3] or k.shape[2] != v.shape[2]:
            raise InputError(f"q and k need one head size, k and v one length. Given: {shapes}.")
        if len({q.dtype, k.dtype, v.dtype}) > 1 or len({q.device, k.device, v.device}) > 1:
            raise InputError("q, k and v must share dtype and device.")
        if bias is not None and not _broadcasts(tuple(bias.shape), (*q.shape[:3], k.shape[2])):
            raise InputError(f"bias must broadcast to (B, H, N, M). Given: {tuple(bias.shape)} with q, k, v {shapes}.")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be in [0, 1). Given: {dropout}.")
        bias_shape = None if bias is None else tuple(bias.shape)
        return cls(*shapes, q.dtype, q.device, bias_shape, dropout, _second_order.get())


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


class Attention(Spec, ABC):
    """One implementation of attention.

    `exact` says that it computes the formula up to rounding; `preference` orders the backends that `auto` considers,
    highest first.
    """

    kind: ClassVar[str] = "attention"
    exact: ClassVar[bool] = True
    preference: ClassVar[int] = 0

    @abstractmethod
    def supports(self, call: AttentionCall) -> tuple[str, ...]:
        """The reasons why this backend cannot serve the call; empty means that it can."""

    @abstractmethod
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
        """softmax(q k^T scale + bias) v: (B, H, N, V).

        Arguments:
            q, k, v: (B, H, N, K), (B, H, M, K), (B, H, M, V).
            bias: broadcasts to (B, H, N, M), added before the softmax.
            dropout: probability with which an attention weight is dropped.
            scale: of the inner products; None is K^(-1/2).
        """


@contextmanager
def second_order() -> Iterator[None]:
    """Inside, `auto` chooses a backend that can be differentiated twice and in forward mode."""
    token = _second_order.set(True)
    try:
        yield
    finally:
        _second_order.reset(token)


def choose_attention(name: str, call: AttentionCall) -> Attention:
    """The backend for a call: `auto`, or the one named.

    Raises:
        IncompatibleError: the named backend, or every installed one, cannot serve the call; gives each one's reasons.
    """
    if name != "auto":
        backend: Attention = registry.create("attention", name)
        reasons = backend.supports(call)
        if reasons:
            raise IncompatibleError(f"Attention backend {name!r} cannot serve this call: {'; '.join(reasons)}.")
        return backend
    candidates: list[tuple[str, Attention]] = []
    refused = []
    for installed in registry.available("attention"):
        try:
            candidates.append((installed, registry.create("attention", installed)))
        except ItoflowError as error:
            refused.append(f"{installed}: {error}")
    candidates.sort(key=lambda item: -item[1].preference)
    for installed, candidate in candidates:
        reasons = candidate.supports(call) if candidate.exact else ("it is approximate; name it to use it",)
        if not reasons:
            return candidate
        refused.append(f"{installed}: {'; '.join(reasons)}")
    listed = "\n  ".join(refused) or "none is installed: pip install itoflow-attention"
    raise IncompatibleError(f"No installed attention backend can serve this call:\n  {listed}")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    backend: str = "auto",
    bias: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention by the backend named, or by the one that `auto` chooses: (B, H, N, V).

    Raises:
        InputError: the tensors do not fit together.
        IncompatibleError: see `choose_attention`.
    """
    chosen = choose_attention(backend, AttentionCall.of(q, k, v, bias, dropout))
    return chosen(q, k, v, bias=bias, dropout=dropout, scale=scale)
