"""The joint step of normalisation and SiLU against its two steps by torch: values, gradients, second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from itoflow_unet.norm import Norm
from itoflow_unet.unet import UNet


def pieces(dtype, channels=12):
    generator = torch.Generator().manual_seed(0)
    x = 3 + 2 * torch.randn(3, channels, 5, 4, generator=generator, dtype=torch.float64)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    norm = Norm(UNet(groups=3), channels).to(torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        for weight in norm.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return norm, x, torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_against_torch_in_float64(dtype, tolerance):
    norm, x, direction = pieces(dtype)
    leaf = x.clone().requires_grad_()
    y = norm.silu(leaf)
    assert "NormSiLU" in type(y.grad_fn).__name__
    got = [y, *torch.autograd.grad(y, (leaf, norm.weight, norm.bias), direction)]
    exact, weight, bias = (v.detach().double().requires_grad_() for v in (x, norm.weight, norm.bias))
    y = F.silu(F.group_norm(exact, 3, weight, bias, norm.eps))
    wanted = [y, *torch.autograd.grad(y, (exact, weight, bias), direction.double())]
    for a, b in zip(got, wanted, strict=True):
        assert float((a.detach().double() - b.detach()).norm() / b.detach().norm()) < tolerance


def test_second_derivatives():
    norm, x, _ = pieces(torch.float64)
    x = x[:1].contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradgradcheck(norm.silu, (x,))
