"""Sizes: odd and small ones work, impossible ones are refused with what would work; parameter counts of the papers."""

from __future__ import annotations

import pytest
import torch

from itoflow import DataSpec, IncompatibleError, OptionError
from itoflow_unet.presets import DDPM
from itoflow_unet.resample import double, double_filtered, halve, halve_filtered
from itoflow_unet.unet import UNet

SMALL = {"channels": 8, "blocks": 1, "attention": (4,)}


@pytest.mark.parametrize("shape", [(2, 9), (1, 8, 8), (1, 28, 28), (3, 9, 7), (1, 5, 6, 7)])
@pytest.mark.parametrize("resample", ["conv", "pool", "residual", "residual-fir"])
def test_every_size_and_dimension(shape, resample):
    torch.manual_seed(0)
    data = DataSpec(shape=shape)
    net = UNet(**SMALL, multipliers=(1, 2, 2), resample=resample, zero_init=False).build(data)
    x = torch.randn(2, *shape)
    y = net(x, torch.rand(2), {})
    assert y.shape == x.shape
    flat = y.detach().flatten(2)
    assert bool((flat.std(2) > 0).all())


def test_what_is_refused_names_what_works():
    with pytest.raises(IncompatibleError, match=r"sides must be at least 5.*give 3 multipliers or fewer"):
        UNet(**SMALL).build(DataSpec(shape=(1, 4, 4)))
    UNet(**SMALL, multipliers=(1, 2, 2)).build(DataSpec(shape=(1, 4, 4)))
    UNet(**SMALL).build(DataSpec(shape=(1, 5, 5)))
    with pytest.raises(IncompatibleError, match="mlp"):
        UNet(**SMALL).build(DataSpec(shape=(2,)))
    with pytest.raises(IncompatibleError, match="groups"):
        UNet(**SMALL, groups=3).build(DataSpec(shape=(1, 8, 8)))
    with pytest.raises(IncompatibleError, match=r"heads = 3.*heads may be 1, 2, 4, 8, 16 there"):
        UNet(**SMALL, heads=3).build(DataSpec(shape=(1, 8, 8)))
    with pytest.raises(IncompatibleError, match=r"16 channels.*resolution 4.*head_size = 6.*may be 1, 2, 4, 8, 16"):
        UNet(**SMALL, head_size=6).build(DataSpec(shape=(1, 8, 8)))
    UNet(**SMALL, head_size=16, multipliers=(1, 2)).build(DataSpec(shape=(1, 8, 8)))
    with pytest.raises(OptionError, match="not both"):
        UNet(heads=2, head_size=8)


@pytest.mark.parametrize("n", [4, 7])
def test_resampling_of_a_constant(n):
    """Means, repetition and the filter keep a constant, away from the edges where the filter sees zeros."""
    x = torch.ones(1, 2, n, n)
    half = [-(-n // 2)] * 2
    assert torch.equal(halve(x), torch.ones(1, 2, *half))
    assert torch.equal(double(halve(x), (n, n)), x)
    assert halve_filtered(x).shape == (1, 2, *half)
    assert torch.allclose(halve_filtered(x)[..., 1:-1, 1:-1], torch.ones(1))
    assert torch.allclose(double_filtered(x, (2 * n, 2 * n))[..., 1:-1, 1:-1], torch.ones(1))


def test_filtered_resampling_is_its_own_transpose():
    """<halve(x), y> = <x, double(y)> / 2^2: the two filters are one, up and down."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 3, n, n, generator=generator, dtype=torch.float64) for n in (8, 4))
    assert float(((halve_filtered(x) * y).sum() - (x * double_filtered(y, (8, 8))).sum() / 4).abs()) < 1e-12


def test_parameters_of_the_ddpm_paper():
    """35.7 M, appendix B of Ho et al., 2020."""
    net = DDPM().build(DataSpec(shape=(3, 32, 32)))
    assert sum(p.numel() for p in net.parameters()) == 35_746_307


def test_a_fresh_network_is_zero():
    net = UNet(**SMALL, multipliers=(1, 2)).build(DataSpec(shape=(1, 8, 8)))
    assert bool((net(torch.randn(2, 1, 8, 8), torch.rand(2), {}) == 0).all())
