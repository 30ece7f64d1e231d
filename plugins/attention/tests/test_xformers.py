"""The adapter to xformers, on a CPU, against a stand-in written from the documented contract of xformers 0.0.35.

The contract: q [B, N, H, K], k [B, M, H, K], v [B, M, H, V], last stride 1, nothing broadcast, bias of exactly
[B, H, N, M]; an operator takes a call only where `not_supported_reasons(Inputs(...))` is empty. The stand-in refuses
what breaks it, and forgets the gradient of a bias when none of q, k and v has one, as xformers does.
The real library is tested in test_mathematics.py, under the mark `gpu`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from itoflow import AttentionCall
from itoflow.errors import IncompatibleError
from itoflow_attention import xformers as adapter
from itoflow_attention.xformers import Xformers

CUDA = torch.device("cuda")


@dataclass
class Inputs:
    query: Tensor
    key: Tensor
    value: Tensor
    attn_bias: Tensor | None = None
    p: float = 0.0
    scale: float | None = None


class Operator:
    """Reasons by the documented rules; rows of 16 bytes."""

    NAME: str
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    bias = True
    out_of_order = False

    @classmethod
    def is_available(cls) -> bool:
        return True

    @classmethod
    def not_supported_reasons(cls, d: Inputs) -> list[str]:
        reasons = []
        step = 16 // d.query.element_size()
        for name, x in (("query", d.query), ("key", d.key), ("value", d.value)):
            if x.shape[-1] % step or any(s % step for s in x.stride()[:-1]):
                reasons.append(f"{name} is not aligned to {step}")
            if x.stride(-1) != 1:
                reasons.append(f"{name}.stride(-1) is not 1")
        if d.query.dtype not in cls.dtypes:
            reasons.append(f"dtype={d.query.dtype}")
        if d.attn_bias is not None:
            if not cls.bias:
                reasons.append("no tensor bias")
            if d.attn_bias.stride(-1) != 1 or any(s % step for s in d.attn_bias.stride()[:-1]):
                reasons.append("attn_bias is not aligned")
        if cls.out_of_order:
            reasons.append("operator wasn't built -\n   see `python -m xformers.info`")
        return reasons


def operator(name: str, module: str, **options: Any) -> type[Operator]:
    return type(name, (Operator,), {"NAME": name, "__module__": f"xformers.ops.fmha.{module}", **options})


class Fmha(ModuleType):
    """The module xformers.ops.fmha."""

    def __init__(self) -> None:
        super().__init__("xformers.ops.fmha")
        self.Inputs = Inputs
        self.ALL_FW_OPS = [
            operator("cutlassF", "cutlass"),
            operator("flashF", "flash", bias=False, dtypes=(torch.bfloat16, torch.float16)),
            operator("splitF", "triton_splitk"),
        ]
        self.ALL_BW_OPS = [
            operator("cutlassB", "cutlass"),
            operator("flashB", "flash", bias=False, dtypes=(torch.bfloat16, torch.float16)),
        ]
        self.calls: list[tuple[Inputs, tuple[Any, Any]]] = []

    def memory_efficient_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Tensor | None = None,
        p: float = 0.0,
        scale: float | None = None,
        *,
        op: tuple[Any, Any],
    ) -> Tensor:
        given = Inputs(query, key, value, attn_bias, p, scale)
        self.calls.append((given, op))
        (b, n, h, _), m = query.shape, key.shape[1]
        if (key.shape[0], key.shape[2]) != (b, h) or value.shape[:3] != (b, m, h):
            raise ValueError("nothing broadcasts")
        if attn_bias is not None and attn_bias.shape != (b, h, n, m):
            raise ValueError(f"bias {attn_bias.shape} is not {(b, h, n, m)}")
        taken = query.requires_grad or key.requires_grad or value.requires_grad
        for part in op if taken and torch.is_grad_enabled() else op[:1]:
            if reasons := part.not_supported_reasons(given):
                raise ValueError(reasons)
        with torch.set_grad_enabled(taken and torch.is_grad_enabled()):
            logits = (query.transpose(1, 2) * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.permute(
                0, 2, 3, 1
            )
            logits = logits if attn_bias is None else logits + attn_bias
            weights = torch.nn.functional.dropout(logits.softmax(-1), p)
            return (weights @ value.transpose(1, 2)).transpose(1, 2).contiguous()


@pytest.fixture
def fmha(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fmha]:
    """The stand-in is installed, and what would lie on a CUDA device lies on the CPU."""
    module = Fmha()
    for name in ("xformers", "xformers.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "xformers.ops.fmha", module)
    on_cpu = adapter.probes
    monkeypatch.setattr(
        adapter, "probes", lambda call, layout: on_cpu(replace(call, device=torch.device("cpu")), layout)
    )
    adapter.operators.cache_clear()
    yield module
    adapter.operators.cache_clear()


def test_layout_against_the_mathematics(fmha: Fmha, cases: list[Any], error: Callable[..., float]) -> None:
    """Every bias form and layout whose head sizes are multiples of 16 bytes: outputs and gradients."""
    chosen = [case for case in cases if not any(size % 4 for size in case.sizes)]
    assert len(chosen) >= 192
    assert max(error(Xformers(), case, torch.float32) for case in chosen) <= 1e-5
    assert len(fmha.calls) == len(chosen)


def test_what_lies_right_is_not_copied(fmha: Fmha) -> None:
    q, k, v = torch.randn(2, 6, 3, 3, 8).unbind(2)  # one projection for all three, heads last
    Xformers()(*(x.transpose(1, 2) for x in (q, k, v)))
    ((given, _),) = fmha.calls
    assert [x.data_ptr() for x in (given.query, given.key, given.value)] == [x.data_ptr() for x in (q, k, v)]


def test_what_starts_between_two_steps_is_copied(fmha: Fmha) -> None:
    q, k, v = (torch.randn(2 * 3 * 6 * 8 + 1)[1:].view(2, 3, 6, 8) for _ in range(3))
    Xformers()(q, k, v)
    ((given, _),) = fmha.calls
    assert all(x.storage_offset() == 0 for x in (given.query, given.key, given.value))


def test_a_bias_alone_gets_its_gradient(fmha: Fmha) -> None:
    q, k, v = (torch.randn(2, 3, 6, 8) for _ in range(3))
    bias = torch.randn(3, 1, 6).requires_grad_()
    Xformers()(q, k, v, bias=bias).square().sum().backward()
    assert bias.grad is not None
    assert float(bias.grad.abs().max()) > 0


def test_scale_and_dropout_are_passed_on(fmha: Fmha) -> None:
    q, k, v = (torch.randn(2, 3, 6, 8) for _ in range(3))
    Xformers()(q, k, v, dropout=0.3, scale=0.7)
    assert [(given.p, given.scale) for given, _ in fmha.calls] == [(0.3, 0.7)]


def test_forward_and_backward_are_of_one_module_and_the_fastest_that_can(fmha: Fmha) -> None:
    q, k, v = (torch.randn(1, 1, 8, 8).bfloat16().requires_grad_() for _ in range(3))
    Xformers()(q, k, v)
    Xformers()(q, k, v, bias=torch.zeros(8, 8).bfloat16())
    with torch.no_grad():
        Xformers()(q, k, v)
    names = [tuple(part and part.NAME for part in op) for _, op in fmha.calls]
    assert names == [("flashF", "flashB"), ("cutlassF", "cutlassB"), ("flashF", None)]


def call(**options: Any) -> AttentionCall:
    shape = (2, 3, 6, options.pop("size", 8))
    return AttentionCall(shape, shape, shape, **{"dtype": torch.float32, "device": CUDA, "gradient": True, **options})


def test_reasons_are_those_of_every_operator(fmha: Fmha) -> None:
    assert Xformers().supports(call()) == ()
    flash, cutlass, split = Xformers().supports(call(size=6))
    assert flash.startswith("flashF: query is not aligned to 4")
    assert "dtype=torch.float32" in flash
    assert cutlass.startswith("cutlassF: query is not aligned to 4")
    assert split.endswith("it has no backward pass")


def test_a_wheel_without_operators_is_found_out(fmha: Fmha) -> None:
    """`is_available()` says true, as with a wheel for another version of CUDA."""
    for op in fmha.ALL_FW_OPS:
        op.out_of_order = True
    assert all(op.is_available() for op in fmha.ALL_FW_OPS)
    reasons = Xformers().supports(call())
    assert len(reasons) == 3
    assert all("operator wasn't built - see `python -m xformers.info`" in reason for reason in reasons)
    q = torch.randn(2, 3, 6, 8, requires_grad=True)
    with pytest.raises(IncompatibleError, match=r"no operator for this call: flashF: .*wasn't built"):
        Xformers()(q, q, q)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": torch.float64}, "xformers has no float64"),
        ({"second_order": True}, "xformers has no second and no forward-mode derivative"),
        ({"device": torch.device("cpu")}, "xformers needs a CUDA device; this call is on cpu"),
    ],
)
def test_plain_reasons_come_before_the_operators(fmha: Fmha, options: dict[str, Any], reason: str) -> None:
    assert Xformers().supports(call(**options)) == (reason,)


def test_a_bias_is_asked_about_in_the_form_in_which_it_is_passed(fmha: Fmha) -> None:
    assert Xformers().supports(call(bias=(6,))) == ()
    assert Xformers().supports(call(bias=(1, 3, 6, 6), bias_gradient=True)) == ()


def test_absent_and_broken_libraries_are_reasons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("xformers", "xformers.ops", "xformers.ops.fmha"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "absent").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "absent")])
    assert Xformers().supports(call()) == ("xformers is not installed: pip install 'itoflow-attention[xformers]'",)
    for text, said in (
        ("import nonesuch", "No module named 'nonesuch'"),
        ("raise OSError('libcudart.so.12')", "libcudart"),
    ):
        folder = tmp_path / said[:3].strip()
        folder.mkdir()
        (folder / "xformers.py").write_text(text)
        monkeypatch.setattr(sys, "path", [str(folder)])
        (reason,) = Xformers().supports(call())
        assert reason.startswith("xformers cannot be imported")
        assert said in reason


def test_a_cpu_call_never_imports_the_library(tmp_path: Path) -> None:
    (tmp_path / "xformers.py").write_text("raise SystemExit('imported')")
    code = """
import sys, torch
from itoflow.attention import AttentionCall, attention, attention_reasons
x = torch.zeros(1, 1, 4, 8)
attention(x, x, x)
print(attention_reasons(AttentionCall.of(x, x, x))["xformers"], "xformers" in sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "('xformers needs a CUDA device; this call is on cpu',) False"
