"""Normalisation, SiLU and convolution as one step against three by torch: values, gradients, what is kept."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from itoflow import DataSpec
from itoflow_unet.norm import Norm
from itoflow_unet.unet import UNet


def pieces(dtype, channels=12, positions=(5, 4)):
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(3, channels, *positions, generator=generator, dtype=torch.float64)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    norm = Norm(UNet(groups=3), channels).to(torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        for weight in norm.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return norm, x, torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)


def distances(norm, x, direction, times=1):
    """Of values and gradients to torch's steps in float64, of the last of some backward passes."""
    torch.manual_seed(0)
    conv = nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1, device=x.device, dtype=x.dtype)
    leaf = x.clone().requires_grad_()
    seen = []

    def then(y):
        seen.append(type(y.grad_fn).__name__)
        return conv(y)

    y = norm.silu(leaf, then)
    assert seen == ["_NormBackward"]
    inputs = leaf, norm.weight, norm.bias, conv.weight, conv.bias
    for _ in range(times):
        got = [y, *torch.autograd.grad(y, inputs, direction, retain_graph=True)]
    exact, *weights = (v.detach().double().requires_grad_() for v in (x, *inputs[1:]))
    y = F.conv2d(F.silu(F.group_norm(exact, 3, *weights[:2], norm.eps)), *weights[2:], padding=1)
    wanted = [y, *torch.autograd.grad(y, (exact, *weights), direction.double())]
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(got, wanted, strict=True)]
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


@pytest.mark.parametrize("positions", [(5, 4), (33, 32)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_against_torch_in_float64(dtype, tolerance, positions):
    norm, x, direction = pieces(dtype, positions=positions)
    assert max(distances(norm, x, direction)) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_silu(dtype):
    norm, x, direction = pieces(dtype, positions=(33, 32))
    exact, *weights = (v.detach().double().requires_grad_() for v in (x, norm.weight, norm.bias))
    wanted = F.group_norm(exact, 3, *weights, norm.eps)
    with torch.no_grad():
        assert_near(norm(x), wanted, dtype)
        assert norm(x).is_contiguous(memory_format=torch.channels_last)
    y = norm(x.requires_grad_())
    assert type(y.grad_fn).__name__ == "_NormBackward"
    assert_near(y, wanted, dtype)
    got = torch.autograd.grad(y, (x, norm.weight, norm.bias), direction)
    for a, b in zip(got, torch.autograd.grad(wanted, (exact, *weights), direction.double()), strict=True):
        assert_near(a, b, dtype)


def assert_near(a, b, dtype):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert float((a.detach() - b.detach()).norm()) < tolerance * float(b.detach().norm())


@pytest.mark.parametrize("mean", [30, 300, 3000])
def test_means_far_from_zero(mean):
    """Within eight times torch's own rounding where positions lie together; without a second look it is hundreds."""
    norm, x, direction = pieces(torch.float32, positions=(33, 32))
    x = (x + mean).contiguous(memory_format=torch.channels_last)
    theirs, exact = (
        [v.detach().to(t).requires_grad_() for v in (x, *norm.parameters())] for t in (x.dtype, torch.double)
    )
    results = []
    for leaf, *weights in theirs, exact:
        y = F.silu(F.group_norm(leaf.contiguous(), 3, *weights, norm.eps))
        results.append([y, *torch.autograd.grad(y, (leaf, *weights), direction.to(y.dtype))])
    x.requires_grad_()
    y = norm.silu(x, lambda y: y)
    ours = y, *torch.autograd.grad(y, (x, *norm.parameters()), direction)
    for a, b, c in zip(ours, *results, strict=True):
        assert float((a - c).detach().norm()) <= 8 * float((b - c).detach().norm())


def test_a_second_pass_computes_again_what_the_first_has_used_up():
    norm, x, direction = pieces(torch.float64)
    assert max(distances(norm, x, direction, times=2)) < 1e-12


def test_what_the_convolution_reads_is_not_kept():
    """Of the maps that a step makes, x and the result are left: beside them the convolution has its weights only."""
    norm, x, _ = pieces(torch.float32)
    conv = nn.Conv2d(12, 12, 3, padding=1)
    made = []
    y = norm.silu(x.requires_grad_(), lambda y: conv(made.append(weakref.ref(y)) or y))
    assert y.requires_grad
    assert [ref() for ref in made] == [None]


def kept_on_cpu(net, *inputs):
    with torch.autograd.graph.save_on_cpu():
        return net(*inputs)


@pytest.mark.parametrize("way", [partial(checkpoint, use_reentrant=False), kept_on_cpu])
def test_torchs_ways_to_keep_less_give_the_same_gradients(way):
    torch.manual_seed(0)
    net = UNet(channels=8, multipliers=(1, 2), attention=(), zero_init=False).build(DataSpec(shape=(1, 8, 8)))
    x, t = torch.randn(3, 1, 8, 8, requires_grad=True), torch.rand(3)
    inputs = x, *net.parameters()
    wanted = torch.autograd.grad(net(x, t, {}).square().sum(), inputs)
    got = torch.autograd.grad(way(net, x, t, {}).square().sum(), inputs)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("of", [0, 1])
def test_vmap_over_points_and_over_times(of):
    torch.manual_seed(0)
    net = UNet(channels=8, multipliers=(1, 2), attention=(), zero_init=False).build(DataSpec(shape=(1, 8, 8)))
    each = [torch.randn(3, 1, 1, 8, 8), torch.rand(3, 1)]
    each[1 - of] = each[1 - of][:1].expand_as(each[1 - of])
    wanted = torch.stack([net(x, t, {}) for x, t in zip(*each, strict=True)])
    in_dims = (0, None) if of == 0 else (None, 0)
    inputs = [value if i == of else value[0] for i, value in enumerate(each)]
    got = torch.func.vmap(lambda x, t: net(x, t, {}), in_dims)(*inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_second_derivatives():
    norm, x, _ = pieces(torch.float64)
    conv = nn.Conv2d(12, 2, 3, padding=1, dtype=torch.float64)
    x = x[:1].contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: norm.silu(x, conv), (x,))
