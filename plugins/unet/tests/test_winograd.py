"""F(4x4, 3x3) against direct sums in float64, and where it is used."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from itoflow_unet import winograd
from itoflow_unet.winograd import Conv2d, faster

SHAPES = [(16, 64, 128, 8, 8), (3, 128, 64, 8, 24), (2, 128, 128, 36, 20), (1, 5, 7, 4, 12), (2, 3, 2, 16, 16)]


def pair(inside, outside):
    torch.manual_seed(0)
    conv = Conv2d(inside, outside, 3, padding=1).to(memory_format=torch.channels_last)
    exact = nn.Conv2d(inside, outside, 3, padding=1).double()
    exact.load_state_dict(conv.state_dict())
    return conv, exact


def maps(batch, channels, height, width):
    return torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)


def together(x):
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("piece", [winograd.PIECE, 1])
def test_outputs_and_gradients_are_those_of_the_direct_sum(shape, piece):
    """The rounding of float32 in sums of up to 1,200 terms, four times that of the direct sum."""
    batch, inside, outside, height, width = shape
    conv, exact = pair(inside, outside)
    x = maps(batch, inside, height, width)
    here, there = x.clone().requires_grad_(), x.double().requires_grad_()
    with patch.object(winograd, "faster", lambda *_: True), patch.object(winograd, "PIECE", piece):
        y = conv(here)
        assert "_Convolution" in type(y.grad_fn).__name__
        assert together(y)
        dy = torch.randn_like(y)
        y.backward(dy)
    reference = exact(there)
    reference.backward(dy.double())
    found = [y, here.grad, conv.weight.grad, conv.bias.grad]
    for ours, theirs in zip(found, [reference, there.grad, exact.weight.grad, exact.bias.grad], strict=True):
        assert ours.shape == theirs.shape
        assert float((ours.double() - theirs).detach().norm() / theirs.detach().norm()) < 3e-6


def test_second_derivatives():
    conv, exact = pair(4, 6)
    x = maps(2, 4, 8, 8)

    def penalty(module, x):
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        g.square().sum().backward()
        return x.grad, module.weight.grad, module.bias.grad

    with patch.object(winograd, "faster", lambda *_: True):
        ours = penalty(conv, x)
    for a, b in zip(ours, penalty(exact, x.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_gradients_are_in_float32_where_the_backward_pass_is_called_under_autocast():
    conv, _ = pair(4, 6)
    x = maps(2, 4, 8, 8).requires_grad_()

    def gradients(autocast):
        loss = conv(x).square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(loss, [x, conv.weight])

    with patch.object(winograd, "faster", lambda *_: True):
        for under, apart in zip(gradients(True), gradients(False), strict=True):
            assert torch.equal(under, apart)


def test_frozen_weights_and_inputs_get_no_gradient():
    conv, _ = pair(4, 6)
    conv.weight.requires_grad_(False)
    x = maps(2, 4, 8, 8)
    with patch.object(winograd, "faster", lambda *_: True):
        conv(x).sum().backward()
    assert conv.weight.grad is None
    assert x.grad is None
    assert conv.bias.grad is not None


def test_it_is_used_where_it_is_faster_only(monkeypatch):
    monkeypatch.setattr(winograd, "pace", lambda: 1.0)
    weight, x = torch.zeros(128, 128, 3, 3), maps(16, 128, 16, 16)
    assert faster(x, weight)
    assert not faster(x.contiguous(), weight)
    assert not faster(x.double(), weight.double())
    assert not faster(x[:, :, :14].contiguous(memory_format=torch.channels_last), weight)
    assert not faster(x[:1], weight)
    assert not faster(x[:, :32].contiguous(memory_format=torch.channels_last), weight[:, :32])
    with torch.autocast("cpu", torch.bfloat16):
        assert not faster(x, weight)
    assert not torch.func.vmap(lambda x: torch.tensor(faster(x, weight)), out_dims=None)(x[None])
    monkeypatch.setattr(winograd, "pace", lambda: 0.4)
    assert not faster(x, weight)


def test_the_pace_of_products_is_measured_once():
    assert 0 < winograd.pace() == winograd.pace()


def test_a_default_device_and_dtype_of_torch_change_nothing():
    conv, exact = pair(4, 6)
    x = maps(2, 4, 8, 8)
    constants = winograd._matrices, winograd._blocks, winograd.pace
    for constant in constants:
        constant.cache_clear()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"), patch.object(winograd, "faster", lambda *_: True):
            assert winograd.pace() > 0
            y = conv(x)
    finally:
        torch.set_default_dtype(torch.float32)
        for constant in constants:
            constant.cache_clear()
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"padding": 0}, {"padding": 2, "dilation": 2}])
def test_other_convolutions_stay_torchs(options):
    conv = Conv2d(8, 8, 3, **options)
    x = maps(2, 8, 8, 8)
    with patch.object(winograd, "faster", lambda *_: True):
        y = conv(x)
    torch.testing.assert_close(y, F.conv2d(x, conv.weight, conv.bias, **options))


def test_torch_compile_reads_a_plain_convolution():
    conv, exact = pair(128, 128)
    x = maps(4, 128, 16, 16)
    y = torch.compile(conv, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(y, exact.float()(x), rtol=1e-4, atol=1e-5)
