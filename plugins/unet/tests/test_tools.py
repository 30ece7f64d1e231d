"""What other tools do to a network: hooks, wrappers, pruning, frozen weights, graphs of torch, fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune

import itoflow
from itoflow import DataSpec
from itoflow_unet.unet import UNet

X, T = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 0.9, 4)


def network(**options):
    torch.manual_seed(0)
    small = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "head_size": 8}
    return UNet(**small, zero_init=False, **options).build(DataSpec(shape=(3, 8, 8)))


def convolutions(net):
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


def doubling(net):
    return net.up[0].change.conv


def test_hooks_of_every_convolution_see_what_it_gave():
    net, seen, back = network(), {}, []
    for conv in convolutions(net):
        conv.register_forward_hook(lambda conv, given, out: seen.update({conv: (given[0], out)}))
        conv.register_full_backward_hook(lambda *_: back.append(1))
    net(X.clone().requires_grad_(), T, {}).sum().backward()
    assert len(seen) == len(back) == len(convolutions(net))
    with torch.no_grad():
        for conv, (given, out) in seen.items():
            torch.testing.assert_close(conv.forward(given), out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["wrapped", "pruned"])
def test_what_replaces_the_weights_of_a_convolution_counts(change):
    """The repeating one has a short cut by its weights, for a convolution that is nothing but them."""

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

        def forward(self, x):
            return 2 * self.inner(x)

    net = network()
    with torch.no_grad():
        before = net(X, T, {})
        if change == "wrapped":
            doubling(net).conv = Wrapped(doubling(net).conv)
        else:
            prune.custom_from_mask(doubling(net).conv, "weight", torch.zeros_like(doubling(net).conv.weight))
        assert not torch.allclose(net(X, T, {}), before, atol=1e-2)


@pytest.mark.parametrize("frozen", [nn.Module, nn.GroupNorm])
def test_second_derivatives_with_frozen_weights(frozen):
    """All of them, or those of the normalisation: as with none frozen."""

    def penalty(net):
        x = X.clone().requires_grad_()
        with itoflow.second_order():
            (g,) = torch.autograd.grad(net(x, T, {}).sum(), x, create_graph=True)
            g.square().sum().backward()
        return x.grad

    net, free = network(), penalty(network())
    for module in net.modules():
        if isinstance(module, frozen):
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)
    torch.testing.assert_close(penalty(net), free, rtol=1e-4, atol=1e-4)


def test_one_graph_serves_every_batch_size():
    torch._dynamo.reset()
    counter = CompileCounter()
    net = torch.compile(network(), backend=counter, fullgraph=True)
    for n in range(2, 12):
        net(torch.randn(n, 3, 8, 8), torch.rand(n), {})
    assert counter.frame_count <= 2  # one for the first size, and one for all


def test_export_with_an_open_batch_size():
    net, n = network(), torch.export.Dim.DYNAMIC
    exported = torch.export.export(net, (X, T, {}), dynamic_shapes=({0: n}, {0: n}, {})).module()
    torch.testing.assert_close(exported(X[:3], T[:3], {}), net(X[:3], T[:3], {}), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and warns of each comparison of sizes
def test_torch_jit_traces_it():
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, t):
            return self.net(x, t, {})

    called = Called()
    traced = torch.jit.trace(called, (X, T), check_trace=False)
    torch.testing.assert_close(traced(X, T), called(X, T), rtol=1e-4, atol=1e-4)


def test_fake_tensors_pass():
    net = network()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert net(mode.from_tensor(X), mode.from_tensor(T), {}).shape == X.shape


def test_matrices_that_are_several_in_one_start_as_each_would():
    """Glorot's deviation by the size of a part: of 128 by 64 numbers, 10 standard errors of it."""
    net = UNet(channels=32, multipliers=(2,), attention=(8,), blocks=1).build(DataSpec(shape=(3, 8, 8)))
    parts = [*net.modulation.weight.split(net.parts), *net.middle.attend.qkv.weight.chunk(3)]
    for part in parts:
        allowed = 10 / (2 * part.numel()) ** 0.5
        assert float(part.detach().std()) == pytest.approx((2 / sum(part.shape)) ** 0.5, rel=allowed)
