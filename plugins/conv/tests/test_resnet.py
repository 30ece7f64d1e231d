"""What is particular to this network: how it starts, that it knows places, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from itoflow import DataSpec, IncompatibleError
from itoflow_conv.resnet import ResNet

SMALL = ResNet(width=8, inner_width=16, depth=1, dense=8, embedding=16)


def test_a_fresh_network_is_zero_everywhere():
    net = SMALL.build(DataSpec(shape=(1, 8, 8)))
    assert bool((net(torch.randn(3, 1, 8, 8), torch.rand(3), {}) == 0).all())


@pytest.mark.parametrize("dense", [0, 8])
def test_it_learns_a_picture_that_depends_on_the_place_alone(dense):
    """Convolutions of a constant input are constant inside; the position maps are not."""
    torch.manual_seed(0)
    net = SMALL.replace(dense=dense).build(DataSpec(shape=(1, 8, 8)))
    target = torch.randn(1, 1, 8, 8)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(80):
        loss = (net(torch.zeros(1, 1, 8, 8), torch.zeros(1), {}) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * target.var().item()


def test_the_dense_layer_sees_the_whole_image():
    """One block of each stage reaches some 10 pixels; corners of a 32 x 32 image meet by it alone."""
    for dense, moved in ((0, False), (8, True)):
        torch.manual_seed(0)
        net = SMALL.replace(dense=dense, groups=8).build(DataSpec(shape=(1, 32, 32))).double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(std=0.3)
        for module in net.modules():
            for name, child in list(module.named_children()):  # a norm sees all of the image too
                if isinstance(child, torch.nn.GroupNorm):
                    setattr(module, name, torch.nn.Identity())
        x = torch.randn(1, 1, 32, 32, dtype=torch.float64)
        other = x.clone()
        other[0, 0, 0, 0] += 1
        t = torch.zeros(1, dtype=torch.float64)
        assert bool(net(x, t, {})[0, 0, -1, -1] != net(other, t, {})[0, 0, -1, -1]) == moved


@pytest.mark.parametrize("shape", [(2,), (1, 7, 8), (1, 8, 7)])
def test_what_it_cannot_serve(shape):
    with pytest.raises(IncompatibleError, match="even H and W"):
        ResNet().build(DataSpec(shape=shape))


def test_groups_divide_the_widths():
    with pytest.raises(IncompatibleError, match="groups = 5 must divide width = 32"):
        ResNet(groups=5).build(DataSpec(shape=(1, 8, 8)))
