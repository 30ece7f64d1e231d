"""Which backend takes which call: reasons that are true, no fallback, nothing dropped, and backends of others."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from itoflow import AttentionCall, registry
from itoflow.attention import attention, attention_reasons, choose_attention
from itoflow.errors import IncompatibleError
from itoflow_attention.chunked import Chunked
from itoflow_attention.math import Math
from itoflow_attention.sdpa import SDPA


def qkv(dtype: torch.dtype = torch.float32, v: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, k, generator=generator).to(dtype) for n, k in ((5, 8), (7, 8), (7, v))]


class Operators(TorchDispatchMode):
    """The names of torch's operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_sdpa_supports_what_torch_fuses_and_nothing_else(cases: list[Any]) -> None:
    answers = []
    for case in cases:
        for dropout in (0.0, 0.5):
            tensors, bias = case.tensors(torch.float32)
            supported = not SDPA().supports(AttentionCall.of(*tensors, bias, dropout, case.scale))
            with Operators() as ran:
                SDPA()(*tensors, bias=bias, dropout=dropout, scale=case.scale)
            fused = any("flash_attention" in name for name in ran.names)
            assert supported == fused, (case, dropout, ran.names)
            answers.append(supported)
    assert set(answers) == {True, False}


def test_sdpa_says_when_its_kernel_is_switched_off() -> None:
    call = AttentionCall.of(*qkv())
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        (reason,) = SDPA().supports(call)
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
    assert "enable_flash_sdp" in reason
    assert not SDPA().supports(call)


def test_auto_prefers_fused_then_blocks_then_the_formula() -> None:
    assert list(attention_reasons(AttentionCall.of(*qkv()))) == ["sdpa", "chunked", "math", "xformers"]
    assert type(choose_attention("auto", AttentionCall.of(*qkv()))) is SDPA
    assert type(choose_attention("auto", AttentionCall.of(*qkv(v=4)))) is Chunked


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("sdpa", {"dropout": 0.1}, "no dropout on a CPU"),
        ("sdpa", {"v": 4}, "one head size on a CPU, not 8 for queries and 4 for values"),
        ("sdpa", {"bias": torch.zeros(5, 7, requires_grad=True)}, "no gradient to a bias on a CPU"),
        ("xformers", {}, "xformers needs a CUDA device; this call is on cpu"),
    ],
)
def test_a_named_backend_never_falls_back(name: str, options: dict[str, Any], reason: str) -> None:
    tensors = qkv(v=options.pop("v", 8)) if "v" in options else qkv()
    with pytest.raises(IncompatibleError, match=f"'{name}' cannot serve this call: .*{reason}"):
        attention(*tensors, backend=name, **options)


def test_a_bias_gets_a_gradient_only_where_one_is_taken() -> None:
    bias = torch.zeros(5, 7, requires_grad=True)
    assert SDPA().supports(AttentionCall.of(*qkv(), bias))
    with torch.no_grad():
        assert not SDPA().supports(AttentionCall.of(*qkv(), bias))


def test_an_argument_that_no_backend_knows_is_an_error() -> None:
    for backend in (attention, Math(), SDPA(), Chunked()):
        with pytest.raises(TypeError, match="is_causal"):
            backend(*qkv(), is_causal=True)


@pytest.mark.parametrize("backend", ["auto", "math", "chunked", "sdpa", Chunked(block=16)], ids=str)
def test_no_argument_is_dropped(backend: Any) -> None:
    tensors, bias = qkv(), torch.randn(3, 1, 7, generator=torch.Generator().manual_seed(1))
    plain = attention(*tensors, backend=backend)
    assert float((attention(*tensors, backend=backend, bias=bias) - plain).abs().max()) > 0.1
    assert float((attention(*tensors, backend=backend, scale=2.0) - plain).abs().max()) > 0.1
    if backend != "sdpa":
        assert float((attention(*tensors, backend=backend, dropout=0.5) - plain).abs().max()) > 0.1


@pytest.mark.parametrize("backend", ["auto", "math", "chunked", "sdpa"])
def test_autocast_casts_the_call_and_every_backend_computes_it_alike(backend: str) -> None:
    q, k, v = qkv()
    bias = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(q.bfloat16(), k, v.bfloat16(), bias=bias, backend=backend)  # e.g. after a norm on k
    assert out.dtype == torch.bfloat16
    exact = Math()(*(x.bfloat16().double() for x in (q, k, v)), bias=bias.bfloat16().double())
    assert float((out.double() - exact).abs().max()) < 2e-2
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q.double(), k.double(), v.double(), backend=backend).dtype == torch.float64


PLUGIN = """
from itoflow import Registration, hookimpl


@hookimpl
def itoflow_attentions():
    return [Registration("uniform", "itoflow_other.backend:Uniform", "Attends to all keys alike, where q is zero")]
"""

BACKEND = '''
"""A backend of somebody else."""
from typing import ClassVar

from itoflow import Attention


class Uniform(Attention):
    """The mean of v, exact only for equal logits."""

    exact: ClassVar[bool] = EXACT
    preference: ClassVar[int] = 100

    def supports(self, call):
        if call.bias is not None:
            return ("it knows no bias",)
        if call.dropout:
            raise RuntimeError("out of order")
        return ()

    def __call__(self, q, k, v, *, bias=None, dropout=0.0, scale=None):
        return v.mean(2, keepdim=True).expand(*q.shape[:3], v.shape[3])
'''


@pytest.fixture(params=[True, False], ids=["exact", "approximate"])
def third_party(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    info = tmp_path / "itoflow_other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: itoflow-other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[itoflow]\nother = itoflow_other.plugin\n")
    package = tmp_path / "itoflow_other"
    package.mkdir()
    sources = {"__init__": "", "plugin": PLUGIN, "backend": BACKEND.replace("EXACT", str(request.param))}
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    registry.reset()
    yield request.param
    registry.reset()
    for name in [name for name in sys.modules if name.partition(".")[0] == "itoflow_other"]:
        del sys.modules[name]


def test_a_backend_of_another_distribution(third_party: bool) -> None:
    q, k, v = qkv()
    mean = v.mean(2, keepdim=True).expand(2, 3, 5, 8)
    assert torch.equal(attention(q, k, v, backend="uniform"), mean)
    assert torch.equal(attention(q, k, v, backend="itoflow-other:uniform"), mean)
    assert torch.equal(attention(q, k, v), mean) == third_party
    bias = torch.zeros(5, 7)
    torch.testing.assert_close(attention(q, k, v, bias=bias), Math()(q, k, v))
    with pytest.raises(IncompatibleError, match="'uniform' cannot serve this call: it knows no bias"):
        attention(q, k, v, bias=bias, backend="uniform")


def test_one_that_breaks_harms_only_itself(third_party: bool) -> None:
    call = AttentionCall.of(*qkv(), dropout=0.5)
    assert type(choose_attention("auto", call)) is Chunked
    (reason,) = attention_reasons(call)["uniform"]
    assert "supports() failed: RuntimeError: out of order" in reason if third_party else "approximate" in reason
