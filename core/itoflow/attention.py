"""Attention backends: softmax(q k^T scale + bias) v by several implementations, and the choice among them.

A backend is chosen outside the model, by name. `auto` takes the first installed backend that is exact and supports
the call; a backend that the user names never falls back silently.

References:
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762, equation 1.
"""

from __future__ import annotations

import math
import operator
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from itoflow import registry
from itoflow.errors import IncompatibleError, InputError, ItoflowError
from itoflow.spec import Spec
from itoflow.transforms import into_graph, under_func


class _Mode(threading.local):
    """What holds in this thread. An attribute of the instance, not of the class: torch.compile guards only those."""

    def __init__(self) -> None:
        self.second_order = False


_mode = _Mode()
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of attention."""


@dataclass(frozen=True)
class AttentionCall:
    """What is asked of a backend.

    Arguments:
        query, key, value: shapes (B, H, N, K), (B, H, M, K), (B, H, M, V). Where the call is read into a graph, B is 1:
            the graph serves any.
        dtype, device: of all three.
        bias: shape of an additive bias that broadcasts to (B, H, N, M), or None.
        dropout: probability in [0, 1).
        second_order: the result will be differentiated twice, or in forward mode.
        scale: of the inner products; None is K^(-1/2).
        gradient: the result will be differentiated.
        bias_gradient: with respect to the bias, too.
        traced: it is read into a graph (`itoflow.transforms.into_graph`), or torch.func transforms it.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    bias: tuple[int, ...] | None = None
    dropout: float = 0.0
    second_order: bool = False
    scale: float | None = None
    gradient: bool = False
    bias_gradient: bool = False
    traced: bool = False

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> AttentionCall:
        """The call with these tensors, inside or outside of `second_order` and of `torch.no_grad`.

        Raises:
            InputError: the shapes, dtypes or devices do not fit together, the dtype is not one of `FLOATS`, or dropout
                or scale is out of range.
        """
        shapes = tuple(q.shape), tuple(k.shape), tuple(v.shape)
        if not (q.ndim == k.ndim == v.ndim == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]):
            raise InputError(
                f"Attention takes q, k, v of shapes (B, H, N, K), (B, H, M, K), (B, H, M, V). Given: {shapes}."
            )
        if q.shape[3] != k.shape[3] or k.shape[2] != v.shape[2]:
            raise InputError(f"q and k need one head size, k and v one length. Given: {shapes}.")
        if not q.shape[3]:
            raise InputError(f"q and k need heads of at least one number. Given: {shapes}.")
        if len({q.dtype, k.dtype, v.dtype}) > 1 or len({q.device, k.device, v.device}) > 1:
            raise InputError("q, k and v must share dtype and device.")
        if q.dtype not in FLOATS:
            raise InputError(f"Attention takes {', '.join(map(str, FLOATS))}. Given: {q.dtype}; convert q, k and v.")
        if bias is not None and not _broadcasts(tuple(bias.shape), (*q.shape[:3], k.shape[2])):
            raise InputError(f"bias must broadcast to (B, H, N, M). Given: {tuple(bias.shape)} with q, k, v {shapes}.")
        if bias is not None and bias.dtype == torch.bool:
            raise InputError("bias is added to the logits, so it is no mask of booleans: write 0 and -inf instead.")
        if bias is not None and (bias.dtype, bias.device) != (q.dtype, q.device):
            raise InputError(
                f"bias must share the dtype and device of q, k and v, {q.dtype} on {q.device}. "
                f"Given: {bias.dtype} on {bias.device}."
            )
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be in [0, 1). Given: {dropout}.")
        given: Any = scale
        if given is not None and (isinstance(given, Tensor) or not math.isfinite(given)):
            raise InputError(f"scale must be a finite number; to learn one, multiply q by it. Given: {given}.")
        graph = into_graph()
        bias_gradient = torch.is_grad_enabled() and bias is not None and bias.requires_grad
        gradient = bias_gradient or (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))
        return cls(
            _sizes(q, graph),
            _sizes(k, graph),
            _sizes(v, graph),
            dtype=q.dtype,
            device=q.device,
            bias=None if bias is None else _sizes(bias, graph),
            dropout=dropout,
            second_order=_mode.second_order,
            scale=scale,
            gradient=gradient,
            bias_gradient=bias_gradient,
            traced=graph or under_func(),
        )


def _sizes(x: Tensor, graph: bool) -> tuple[int, ...]:
    """The shape as integers, also where torch.compile would leave a size open, as the choice may depend on it.

    All but the batch's, which is 1 in a graph: a graph for each would be one for the last batch of a data set too.
    """
    return tuple(1 if graph and i == x.ndim - 4 else operator.index(size) for i, size in enumerate(x.shape))


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


class Attention(Spec, ABC):
    """One implementation of attention.

    `exact` says that it computes the formula up to rounding; `preference` orders the backends that `auto` considers,
    highest first, unless `preference_for` says otherwise for a call.
    """

    kind: ClassVar[str] = "attention"
    exact: ClassVar[bool] = True
    preference: ClassVar[int] = 0

    @abstractmethod
    def supports(self, call: AttentionCall) -> tuple[str, ...]:
        """The reasons why this backend cannot serve the call; empty means that it can."""

    def preference_for(self, call: AttentionCall) -> int:
        """Where `auto` considers this backend for the call: `preference`, or another number where its speed differs."""
        return self.preference

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
            bias: broadcasts to (B, H, N, M), added before the softmax. A query with -inf at every key gets zeros.
            dropout: probability with which an attention weight is dropped, drawn from torch's default generator.
            scale: of the inner products; None is K^(-1/2).
        """


@contextmanager
def second_order() -> Iterator[None]:
    """Inside, `auto` chooses a backend that can be differentiated twice and in forward mode.

    In this thread; what `torch.utils.checkpoint` keeps for later is to be computed again inside too.
    """
    outside, _mode.second_order = _mode.second_order, True
    try:
        yield
    finally:
        _mode.second_order = outside


class _Installed:
    """The backends of one registry, created once: attention is called often, and they have no state."""

    def __init__(self, of: registry.Registry) -> None:
        self.of = of
        self.named: dict[str, Attention] = {}
        self.failed: dict[str, str] = {}
        for name in of.names("attention"):
            try:
                self.get(name)
            except Exception as error:
                self.failed[name] = str(error) if isinstance(error, ItoflowError) else f"cannot be created: {error!r}"

    def order(self, call: AttentionCall) -> list[str]:
        """The backends as `auto` considers them."""
        return sorted(self.named, key=lambda name: -_preference(self.named[name], call))

    def get(self, name: str) -> Attention:
        if name not in self.named:
            self.named[name] = registry.create("attention", name)
        return self.named[name]


_installed: _Installed | None = None


def _backends() -> _Installed:
    global _installed
    if _installed is None or _installed.of is not registry.registry():
        _installed = _Installed(registry.registry())
    return _installed


def _preference(backend: Attention, call: AttentionCall) -> int:
    try:
        return backend.preference_for(call)
    except Exception:  # a broken one harms only itself
        return backend.preference


def _reasons(backend: Attention, call: AttentionCall) -> tuple[str, ...]:
    """Why `auto` passes over a backend; a broken one harms only itself."""
    if not backend.exact:
        return ("it is approximate; name it to use it",)
    try:
        return tuple(backend.supports(call))
    except Exception as error:
        return (f"its supports() failed: {type(error).__name__}: {error}",)


def attention_reasons(call: AttentionCall) -> dict[str, tuple[str, ...]]:
    """For each installed backend, in the order in which `auto` considers them, why it does not take the call.

    `auto` takes the first one without a reason.
    """
    installed = _backends()
    reasons = {name: _reasons(installed.named[name], call) for name in installed.order(call)}
    return {**reasons, **{name: (error,) for name, error in installed.failed.items()}}


def choose_attention(name: str | Attention, call: AttentionCall) -> Attention:
    """The backend for a call: `auto`, the one named, or the one given, where it has options.

    Raises:
        UnknownComponentError: no installed backend has that name.
        IncompatibleError: the named backend, or every installed one, cannot serve the call; gives each one's reasons.
    """
    if isinstance(name, Attention):
        _name(name, call)
        return name
    return _backends().named[_name(name, call)]


def _name(name: str | Attention, call: AttentionCall) -> str:
    """The name by which the registry knows the choice; of a backend given as an object, only that it can serve."""
    installed = _backends()
    if name != "auto":
        backend = name if isinstance(name, Attention) else installed.get(name)
        reasons = backend.supports(call)
        if reasons:
            raise IncompatibleError(f"Attention backend {name!r} cannot serve this call: {'; '.join(reasons)}.")
        return str(name)
    for candidate in installed.order(call):
        if not _reasons(installed.named[candidate], call):
            return candidate
    refused = [f"{candidate}: {'; '.join(reasons)}" for candidate, reasons in attention_reasons(call).items()]
    listed = "\n  ".join(refused) or "none is installed: pip install itoflow-attention"
    raise IncompatibleError(f"No installed attention backend can serve this call:\n  {listed}")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    backend: str | Attention = "auto",
    bias: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention by the backend named or given, or by the one that `auto` chooses: (B, H, N, V).

    Under `torch.autocast`, q, k, v and bias are cast first, as torch's own attention casts them, so that every backend
    sees the same call; float64 stays. Under `torch.compile` the choice is made as the graph is traced, once for all
    batch sizes, but for each length, and for inside and outside of `second_order`; what `auto` chooses leaves no break
    in the graph.

    Raises:
        InputError: the tensors do not fit together.
        IncompatibleError: see `choose_attention`.
    """
    device = q.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
        if bias is not None and bias.is_floating_point() and bias.dtype != torch.float64:
            bias = bias.to(dtype)
        with torch.autocast(device, enabled=False):
            return _attention(q, k, v, backend, bias, dropout, scale)
    return _attention(q, k, v, backend, bias, dropout, scale)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, backend: str | Attention, bias: Tensor | None, dropout: float, scale: float | None
) -> Tensor:
    call = AttentionCall.of(q, k, v, bias, dropout, scale)
    name: str = _traced_name(backend, *[getattr(call, field.name) for field in fields(call)])
    chosen = backend if isinstance(backend, Attention) else _backends().named[name]
    return chosen(q, k, v, bias=bias, dropout=dropout, scale=scale)


def _name_of(backend: str | Attention, *call: Any) -> str:
    """`_name` for the fields of a call."""
    return _name(backend, AttentionCall(*call))


# Called once for each graph of torch.compile, which hands on plain values only.
_traced_name: Any = torch.compiler.assume_constant_result(_name_of)
