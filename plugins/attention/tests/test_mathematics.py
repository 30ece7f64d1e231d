"""Every backend against float64 mathematics, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from itoflow import Attention, AttentionCall
from itoflow.attention import attention
from itoflow_attention.chunked import Chunked
from itoflow_attention.math import Math
from itoflow_attention.sdpa import SDPA
from itoflow_attention.xformers import Xformers

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def served(backend: Attention, cases: list[Any], dtype: torch.dtype, device: str) -> Iterator[Any]:
    for case in cases:
        qkv, bias = case.tensors(dtype, device)
        if not backend.supports(AttentionCall.of(*qkv, bias, 0.0, case.scale)):
            yield case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "backend",
    [Math(), SDPA(), Chunked(), Chunked(block=1), Chunked(block=700)],
    ids=lambda b: f"{type(b).__name__}-{b}",
)
def test_on_cpu(
    backend: Attention,
    dtype: torch.dtype,
    cases: list[Any],
    error: Callable[..., float],
    tolerance: dict[torch.dtype, float],
) -> None:
    errors = {case: error(backend, case, dtype) for case in served(backend, cases, dtype, "cpu")}
    assert len(errors) >= (192 if isinstance(backend, SDPA) else len(cases))
    assert max(errors.values()) <= tolerance[dtype], max(errors, key=lambda case: errors[case])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", [Math(), SDPA(), Chunked(), Xformers()], ids=lambda b: type(b).__name__)
def test_on_cuda(
    backend: Attention,
    dtype: torch.dtype,
    cases: list[Any],
    error: Callable[..., float],
    tolerance: dict[torch.dtype, float],
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    errors = {case: error(backend, case, dtype, "cuda") for case in served(backend, cases, dtype, "cuda")}
    if not errors:
        pytest.skip(f"{type(backend).__name__} takes no call in {dtype} on this machine: see `itoflow attention`")
    assert max(errors.values()) <= tolerance[dtype], max(errors, key=lambda case: errors[case])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_auto_takes_every_call(
    dtype: torch.dtype, cases: list[Any], error: Callable[..., float], tolerance: dict[torch.dtype, float]
) -> None:
    assert len(cases) >= 192
    assert max(error(attention, case, dtype) for case in cases) <= tolerance[dtype]


@pytest.mark.parametrize("wrong", ["bias", "scale", "gradient"])
def test_the_comparison_can_fail(wrong: str, cases: list[Any], error: Callable[..., float]) -> None:
    """A backend that drops an argument, or half a gradient, is found out even at the tolerance of bfloat16."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor, scale: float) -> Tensor:
        if wrong == "gradient":
            k = k.detach() + k - k.detach() * 0.5 - k * 0.5
        return Math()(q, k, v, bias=bias * 0 if wrong == "bias" else bias, scale=None if wrong == "scale" else scale)

    case = next(c for c in cases if c.bias == "learnt" and c.scale is not None and c.lengths == (33, 17))
    assert error(attend, case, torch.float64) > 2e-2


def test_empty_tensors_give_empty_outputs() -> None:
    for backend in (Math(), SDPA(), Chunked()):
        for shape in ((0, 2, 4, 8), (2, 0, 4, 8), (2, 2, 0, 8)):
            x = torch.zeros(shape)
            assert backend(x, x, x).shape == shape
