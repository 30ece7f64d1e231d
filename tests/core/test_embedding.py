"""The embedding of time and conditions against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from itoflow import DataSpec
from itoflow.embedding import Embedding, Sinusoids

W = torch.tensor([1.0, 2.5, 40.0], dtype=torch.float64)


@pytest.mark.parametrize("classes", [None, 4])
@pytest.mark.parametrize("vector", [None, 5])
def test_formula(classes: int | None, vector: int | None) -> None:
    torch.manual_seed(0)
    embed = Embedding(Sinusoids(W), 7, DataSpec(shape=(2,), classes=classes, vector=vector)).double()
    t, v = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), torch.randn(3, 5)
    e = embed(t, {"class": torch.tensor([2, 0, 3]), "vector": v})  # of float32: to the network's own dtype
    for i, label in enumerate([2, 0, 3]):
        phi = [f(float(w * t[i])) for f in (math.cos, math.sin) for w in W]
        inner = embed.first.weight @ torch.tensor(phi, dtype=torch.float64) + embed.first.bias
        wanted = embed.second.weight @ (inner * torch.sigmoid(inner)) + embed.second.bias
        if embed.label is not None:
            wanted = wanted + embed.label.weight[label]
        if embed.vector is not None:
            wanted = wanted + embed.vector.weight @ v[i].double() + embed.vector.bias
        torch.testing.assert_close(e[i], wanted)


def test_sines_first_and_no_state() -> None:
    phi, other = Sinusoids(W), Sinusoids(W, cosine_first=False)
    t = torch.tensor([0.7], dtype=torch.float64)
    assert torch.equal(other(t), phi(t).roll(3, dims=1))
    assert not phi.state_dict()


def test_half_precision_keeps_the_angles() -> None:
    t = torch.tensor([0.1234, 0.999])
    phi = Sinusoids(1000 * torch.linspace(0.1, 1, 5))
    wanted = phi(t)
    assert torch.equal(phi.half().bfloat16()(t), wanted)
    assert phi.double().frequencies.dtype == torch.float64
    assert phi.bfloat16().frequencies.dtype == torch.float32
