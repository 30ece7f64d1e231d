"""Peak memory over the inputs, forward and backward: linear in the length, and quadratic for the plain formula.

The allocator's own record, as torch's profiler writes it: exact, and blind to how busy the machine is.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from itoflow import Attention
from itoflow_attention.chunked import Chunked
from itoflow_attention.math import Math
from itoflow_attention.sdpa import SDPA


def peak(backend: Attention, length: int, trace: Path, *, bias: bool = False, dropout: float = 0.0) -> int:
    """Bytes."""
    qkv = [torch.randn(1, 2, length, 64).requires_grad_() for _ in range(3)]
    added = torch.zeros(2, 1, length).requires_grad_() if bias else None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        backend(*qkv, bias=added, dropout=dropout).sum().backward()
    profile.export_chrome_trace(str(trace))
    events = [e["args"] for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    return max(e["Total Allocated"] for e in events) - before


def growth(backend: Attention, folder: Path, **options: float) -> float:
    few, many = (peak(backend, n, folder / f"{n}.json", **options) for n in (2048, 4096))  # type: ignore[arg-type]
    return many / few


@pytest.mark.parametrize("backend", [SDPA(), Chunked(), Chunked(block=2**14)], ids=lambda b: f"{type(b).__name__}-{b}")
def test_efficient_backends_are_linear(backend: Attention, tmp_path: Path) -> None:
    assert growth(backend, tmp_path) <= 2.6


def test_chunked_is_linear_with_a_learnt_bias_and_dropout(tmp_path: Path) -> None:
    assert growth(Chunked(), tmp_path, bias=True, dropout=0.1) <= 2.6


def test_the_plain_formula_is_quadratic(tmp_path: Path) -> None:
    assert growth(Math(), tmp_path) >= 3.3
