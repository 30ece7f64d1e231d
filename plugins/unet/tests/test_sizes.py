"""Sizes: odd and small ones work, impossible ones are refused with what would work; parameter counts of the papers."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from itoflow import DataSpec, IncompatibleError, NetworkField, OptionError, Parametrization
from itoflow.testing.backbones import ROUNDING
from itoflow.testing.problems import Preserving
from itoflow_unet import resample
from itoflow_unet.presets import ADM, DDPM, DDPMPP, NCSNPP
from itoflow_unet.resample import FilteredConv, RepeatConv, double, double_filtered, halve, halve_filtered
from itoflow_unet.unet import UNet

SMALL = {"channels": 8, "blocks": 1, "attention": (4,)}
PROGRESSIVE = "none", "skips", "residual"


@pytest.mark.parametrize("shape", [(2, 9), (1, 8, 8), (1, 28, 28), (3, 9, 7), (1, 5, 6, 7)])
@pytest.mark.parametrize(
    ("resample", "progressive"),
    [*((resample, "none") for resample in ("conv", "pool", "residual")), *(("residual-fir", p) for p in PROGRESSIVE)],
)
def test_every_size_and_dimension(shape, resample, progressive):
    torch.manual_seed(0)
    data = DataSpec(shape=shape)
    options = {"resample": resample, "progressive": progressive, "zero_init": False}
    net = UNet(**SMALL, **options, multipliers=(1, 2, 2)).build(data)
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
    with pytest.raises(IncompatibleError, match="10 channels do not divide into groups = 8"):
        UNet(channels=32, entry=10, groups=8).build(DataSpec(shape=(1, 8, 8)))
    with pytest.raises(IncompatibleError, match="leave no channel of 8"):
        UNet(channels=8, multipliers=(0.01, 1)).build(DataSpec(shape=(1, 8, 8)))
    with pytest.raises(IncompatibleError, match="frequency_shift = 2 must be less"):
        UNet(channels=4, frequency_shift=2).build(DataSpec(shape=(1, 8, 8)))
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


@pytest.mark.parametrize("size", [(5,), (4, 3), (2, 3, 4)])
def test_convolution_of_repeated_values_without_repeating_them(size):
    """Values and gradients of one transposed convolution against those of the two steps."""
    torch.manual_seed(0)
    module = RepeatConv(3, len(size)).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    twice = [2 * n for n in size]
    with patch.object(resample, "double", side_effect=AssertionError("repeated")):
        y = module(x, twice)
    wanted = module.conv(double(x, twice))
    direction = torch.randn_like(wanted)
    inputs = x, *module.parameters()
    for a, b in zip(
        [y, *torch.autograd.grad(y, inputs, direction)],
        [wanted, *torch.autograd.grad(wanted, inputs, direction)],
        strict=True,
    ):
        assert (a - b).norm() < 1e-13 * b.norm()


def test_filtered_resampling_is_its_own_transpose():
    """<halve(x), y> = <x, double(y)> / 2^2: the two filters are one, up and down."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 3, n, n, generator=generator, dtype=torch.float64) for n in (8, 4))
    assert float(((halve_filtered(x) * y).sum() - (x * double_filtered(y, (8, 8))).sum() / 4).abs()) < 1e-12


@pytest.mark.parametrize("n", [8, 9])
def test_filter_and_strided_convolution_are_one_of_width_6(n):
    module = FilteredConv(2, 3, 1).double()
    x = torch.randn(1, 2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k, w = (1 / 8, 3 / 8, 3 / 8, 1 / 8), module.conv.weight
    kernel = sum(F.pad(k[i] * w, (i, 3 - i)) for i in range(4))
    wanted = F.conv1d(F.pad(x, (2, 2 + n % 2)), kernel, module.conv.bias, stride=2)
    torch.testing.assert_close(module(x), wanted)


def test_the_input_is_carried_on_and_the_feature_map_added():
    torch.manual_seed(0)
    net = NCSNPP(**SMALL, multipliers=(1, 1), dropout=0.0).build(DataSpec(shape=(3, 8, 8))).double()
    down, x, h = net.down[0], torch.randn(2, 3, 8, 8).double(), torch.randn(2, 8, 8, 8).double()
    parts = [torch.randn(2, n).double() for n in net.parts[:2]]
    skips = []
    got, carried = down(h, x, iter(parts), skips)
    inner = down.change(down.blocks[0](h, parts[0]), iter(parts[1:]))
    assert got is carried is skips[-1]
    torch.testing.assert_close(got, (down.image(x) + inner) / 2**0.5)


LARGE = {"channels": 256, "blocks": 2}


@pytest.mark.parametrize(
    ("spec", "size", "classes", "millions"),
    [
        pytest.param(DDPM(), 32, None, 35.7, id="ddpm"),  # appendix B of Ho et al., 2020
        pytest.param(DDPMPP(), 32, None, 61.8, id="ddpmpp"),  # the code of Song et al., 2021
        pytest.param(NCSNPP(), 32, None, 62.8, id="ncsnpp"),
        pytest.param(
            DDPMPP(multipliers=(2, 2, 2), entry=128), 32, None, 55.7, id="ddpmpp-edm"
        ),  # of Karras et al., 2022
        pytest.param(ADM(), 64, 1000, 296, id="adm-64"),  # Dhariwal and Nichol, 2021, table 4, as the three below
        pytest.param(ADM(**LARGE, multipliers=(1, 1, 2, 3, 4)), 128, 1000, 422, id="adm-128"),
        pytest.param(ADM(**LARGE, multipliers=(1, 1, 2, 2, 4, 4)), 256, 1000, 554, id="adm-256"),
        pytest.param(ADM(**LARGE, multipliers=(0.5, 1, 1, 2, 2, 4, 4)), 512, 1000, 559, id="adm-512"),
    ],
)
def test_parameters_of_the_papers(spec, size, classes, millions):
    """To the digits that are published; half a unit of the last is at most 0.2 %."""
    assert round(parameters(spec, size, classes) / 1e6, 1 if millions < 100 else None) == millions


def parameters(spec: UNet, size: int, classes: int | None) -> int:
    """Their number; nothing is allocated."""
    with torch.device("meta"):
        net = spec.build(DataSpec(shape=(3, size, size), classes=classes))
    return sum(p.numel() for p in net.parameters())


def test_a_fresh_network_is_zero():
    net = UNet(**SMALL, multipliers=(1, 2)).build(DataSpec(shape=(1, 8, 8)))
    assert bool((net(torch.randn(2, 1, 8, 8), torch.rand(2), {}) == 0).all())


@pytest.mark.parametrize("spec", [NCSNPP, DDPM])
def test_in_half_precision_it_knows_the_time(spec):
    torch.manual_seed(0)
    net = spec(**SMALL, multipliers=(1, 2), zero_init=False, dropout=0.0).build(DataSpec(shape=(1, 8, 8)))
    field = NetworkField(net, Preserving(), Parametrization(prediction="v"))
    x, t = torch.randn(64, 1, 8, 8), torch.linspace(0.01, 1, 64, dtype=torch.float64)
    with torch.no_grad():
        wanted = field(x, t).output
        net.bfloat16()
        error = field(x, t).output - wanted
    assert float(error.square().mean().sqrt() / wanted.square().mean().sqrt()) < ROUNDING
