"""What is particular to this MLP: how it starts, and how it sees the time."""

from __future__ import annotations

import torch

from itoflow import DataSpec
from itoflow_mlp.mlp import MLP

DATA = DataSpec(shape=(2, 3), classes=4, vector=5)


def inputs(n=4):
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(n, 2, 3, generator=generator), torch.rand(n, generator=generator)
    return x, t, {"class": torch.arange(n) % 4, "vector": torch.randn(n, 5, generator=generator)}


def test_a_fresh_network_is_zero_everywhere():
    net = MLP(width=16, depth=3).build(DATA)
    assert bool((net(*inputs()) == 0).all())


def test_a_fresh_network_learns_from_its_first_step_on():
    """It starts at zero, yet one step in its output layer opens the gradient to all that lies before."""
    net = MLP(width=16, depth=2).build(DATA)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        x, t, cond = inputs(16)
        target = torch.tanh(x) + cond["class"][:, None, None] / 4 + t[:, None, None]
        loss = (net(x, t, cond) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net = MLP(width=16, depth=2, dropout=0.5).build(DataSpec(shape=(3,)))
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.3)
    x, t = torch.randn(4, 3), torch.rand(4)
    net.eval()
    assert torch.equal(net(x, t, {}), net(x, t, {}))
    net.train()
    assert not torch.equal(net(x, t, {}), net(x, t, {}))


def test_near_times_can_be_told_apart_and_the_features_are_bounded():
    """Two times 1e-2 apart move the features by about max_frequency / 100; neighbouring noise levels do not collide."""
    net = MLP(width=16, frequencies=64, max_frequency=100.0).build(DataSpec(shape=(2,)))
    assert float(net.embed.features.frequencies[0]) == 1.0
    assert abs(float(net.embed.features.frequencies[-1]) - 100.0) < 1e-3
    angles = torch.tensor([0.50, 0.51])[:, None] * net.embed.features.frequencies
    features = torch.cat([angles.sin(), angles.cos()], dim=1)
    assert float((features[0] - features[1]).norm()) > 1.0
