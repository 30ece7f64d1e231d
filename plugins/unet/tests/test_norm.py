"""The joint step of normalisation and SiLU against its two steps by torch: values, gradients, second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

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


def distances(norm, x, direction):
    """Of values and gradients to torch's two steps in float64."""
    leaf = x.clone().requires_grad_()
    y = norm.silu(leaf)
    assert "NormSiLU" in type(y.grad_fn).__name__
    got = [y, *torch.autograd.grad(y, (leaf, norm.weight, norm.bias), direction)]
    exact, weight, bias = (v.detach().double().requires_grad_() for v in (x, norm.weight, norm.bias))
    y = F.silu(F.group_norm(exact, 3, weight, bias, norm.eps))
    wanted = [y, *torch.autograd.grad(y, (exact, weight, bias), direction.double())]
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(got, wanted, strict=True)]
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


@pytest.mark.parametrize("positions", [(5, 4), (33, 32)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_against_torch_in_float64(dtype, tolerance, positions):
    norm, x, direction = pieces(dtype, positions=positions)
    assert max(distances(norm, x, direction)) < tolerance


def test_second_derivatives():
    norm, x, _ = pieces(torch.float64)
    x = x[:1].contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradgradcheck(norm.silu, (x,))
