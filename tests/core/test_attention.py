"""The choice among attention backends: `auto` takes the preferred exact one, a named one never falls back."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from itoflow import AttentionCall, second_order
from itoflow.attention import attention, choose_attention
from itoflow.errors import IncompatibleError, InputError, UnknownComponentError

Q, K, V = (torch.randn(2, 3, n, k, generator=torch.Generator().manual_seed(n)) for n, k in ((4, 5), (6, 5), (6, 7)))
BIAS = torch.zeros(3, 1, 6)


def chosen(name: str = "auto", bias: Tensor | None = None) -> str:
    return type(choose_attention(name, AttentionCall.of(Q, K, V, bias))).__name__


def test_auto_takes_the_preferred_exact_backend(toy: ModuleType) -> None:
    assert chosen() == "Fast"


def test_auto_passes_over_one_that_cannot_serve_the_call(toy: ModuleType) -> None:
    assert chosen(bias=BIAS) == "Plain"


def test_an_approximate_backend_is_used_when_named(toy: ModuleType) -> None:
    assert chosen("rough") == "Rough"


def test_a_named_backend_never_falls_back(toy: ModuleType) -> None:
    with pytest.raises(IncompatibleError, match="'fast' cannot serve this call: no bias"):
        chosen("fast", bias=BIAS)


def test_an_unknown_backend_is_an_error(toy: ModuleType) -> None:
    with pytest.raises(UnknownComponentError, match=r"No attention is called 'fst'. Did you mean 'fast'\?"):
        chosen("fst")


def test_second_order_reaches_the_choice_and_ends(toy: ModuleType) -> None:
    with second_order():
        assert chosen() == "Plain"
        with pytest.raises(IncompatibleError, match="no second derivative"):
            chosen("fast")
    assert chosen() == "Fast"


def test_second_order_ends_with_an_error(toy: ModuleType) -> None:
    with pytest.raises(KeyError), second_order():
        raise KeyError
    assert chosen() == "Fast"


def test_all_reasons_are_listed(toy: ModuleType, install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.Plain, "supports", lambda self, call: ("out of order",))
    install(
        "itoflow-broken",
        plugin="from itoflow import Registration, hookimpl\n@hookimpl\ndef itoflow_attentions():\n"
        "    return [Registration('bad', 'itoflow_absent:A', 'Cannot be imported')]\n",
    )
    with pytest.raises(IncompatibleError) as caught:
        chosen(bias=BIAS)
    text = str(caught.value)
    for reason in ("plain: out of order", "fast: no bias", "rough: it is approximate", "bad: attention 'bad' of"):
        assert f"\n  {reason}" in text


def test_none_installed_says_what_to_install(isolated: None) -> None:
    with pytest.raises(IncompatibleError, match="none is installed: pip install itoflow-attention"):
        chosen()


def test_computes_the_formula(toy: ModuleType) -> None:
    bias = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = ((torch.einsum("bhnk,bhmk->bhnm", Q, K) * 0.3 + bias).softmax(-1)) @ V
    torch.testing.assert_close(attention(Q, K, V, bias=bias, scale=0.3), expected)


@pytest.mark.parametrize(
    ("q", "k", "v", "options", "message"),
    [
        (Q[0], K, V, {}, r"takes q, k, v of shapes \(B, H, N, K\).*Given: \(\(3, 4, 5\)"),
        (Q[:1], K, V, {}, "takes q, k, v of shapes"),
        (Q[..., :4], K, V, {}, "q and k need one head size"),
        (Q, K[:, :, :5], V, {}, "k and v one length"),
        (Q.double(), K, V, {}, "must share dtype and device"),
        (Q, K, V, {"bias": torch.zeros(3, 4, 5)}, r"bias must broadcast to \(B, H, N, M\). Given: \(3, 4, 5\)"),
        (Q, K, V, {"bias": torch.zeros(1, 2, 3, 4, 6)}, "bias must broadcast"),
        (Q, K, V, {"dropout": 1.0}, r"dropout must be in \[0, 1\)\. Given: 1.0"),
        (Q, K, V, {"dropout": -0.1}, "dropout must be in"),
        (Q[..., :0], K[..., :0], V, {}, "heads of at least one number"),
        (Q.long(), K.long(), V.long(), {}, r"Given: torch.int64; convert q, k and v"),
        (Q, K, V, {"scale": torch.tensor(0.5)}, "scale must be a finite number; to learn one"),
    ],
)
def test_refuses_tensors_that_do_not_fit(
    toy: ModuleType, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        attention(q, k, v, **options)
