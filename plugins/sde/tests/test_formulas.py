"""The formulas of the papers, written a second time."""

from __future__ import annotations

import math

import pytest
import torch

from itoflow import OptionError
from itoflow.grids import time_grid
from itoflow_sde.cosine import Cosine
from itoflow_sde.edm import EDM
from itoflow_sde.subvp import SubVP
from itoflow_sde.ve import VE
from itoflow_sde.vp import VP

T = torch.linspace(0, 1, 21, dtype=torch.float64)


def integral_of_beta(process, t, knots=20_001):
    s = torch.linspace(0, float(t), knots, dtype=torch.float64)
    return torch.trapezoid(process.beta_min + s * (process.beta_max - process.beta_min), s)


@pytest.mark.parametrize("options", [{}, {"beta_min": 0.5, "beta_max": 7.0}])
def test_vp_and_subvp_kernels_by_quadrature_of_beta(options):
    """Score SDE, equation 29."""
    vp, subvp = VP(**options), SubVP(**options)
    b = torch.stack([integral_of_beta(vp, t) for t in T])
    for process in (vp, subvp):
        torch.testing.assert_close(process.alpha(T), torch.exp(-b / 2), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(vp.sigma(T).square(), 1 - torch.exp(-b), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(subvp.sigma(T), 1 - torch.exp(-b), rtol=1e-7, atol=1e-9)


def test_vp_and_subvp_drift_and_diffusion_of_the_paper():
    """Equations 11 and 12: f = -beta x / 2; g^2 = beta, and beta (1 - exp(-2 B))."""
    x = torch.ones(len(T), 1, dtype=torch.float64)
    for process in (VP(), SubVP()):
        beta = 0.1 + 19.9 * T
        torch.testing.assert_close(process.drift(x, T)[:, 0], -beta / 2)
    torch.testing.assert_close(VP().diffusion(T).square(), 0.1 + 19.9 * T)
    b = 0.1 * T + 19.9 * T**2 / 2
    torch.testing.assert_close(SubVP().diffusion(T).square(), (0.1 + 19.9 * T) * (1 - torch.exp(-2 * b)))


def test_vp_is_the_limit_of_ddpm():
    """prod (1 - beta_i) with beta_i from 1e-4 to 0.02 in 1000 steps is alpha^2, to 5 per cent where it is not tiny."""
    product = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    keep = product > 1e-3
    torch.testing.assert_close(VP().alpha(t).square()[keep], product[keep], rtol=0.05, atol=0)


def test_vp_keeps_unit_variance_and_subvp_stays_below_vp():
    torch.testing.assert_close(VP().alpha(T).square() + VP().sigma(T).square(), torch.ones_like(T), rtol=0, atol=1e-15)
    assert bool((SubVP().sigma(T)[1:] < VP().sigma(T)[1:]).all())


@pytest.mark.parametrize(
    "process", [VP(t_min=0.0), SubVP(t_min=0.0), Cosine(t_min=0.0)], ids=lambda p: type(p).__name__
)
def test_noise_near_the_start_keeps_its_relative_precision(process):
    """sigma(t) / its leading power tends to a constant: no cancellation in 1 - exp(-B)."""
    power = 1.0 if isinstance(process, SubVP) else 0.5
    t = torch.tensor([1e-14, 1e-12, 1e-10], dtype=torch.float64)
    ratio = process.sigma(t) / t**power
    torch.testing.assert_close(ratio, ratio[:1].expand(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "process",
    [VP(t_min=0.0), SubVP(t_min=0.0), Cosine(t_min=0.0), Cosine(t_min=0.0, s=0.0), EDM(t_min=0.0)],
    ids=lambda p: f"{type(p).__name__}{p.model_dump().get('s', '')}",
)
def test_the_time_of_a_log_snr_keeps_its_relative_precision(process):
    t = torch.cat(
        [torch.logspace(-9, -1, 50, dtype=torch.float64), 1 - torch.logspace(-6, -1, 50, dtype=torch.float64)]
    )
    torch.testing.assert_close(process.log_snr_inverse(process.log_snr(t)), t, rtol=1e-13, atol=0)
    ends = process.log_snr_inverse(torch.tensor([math.inf, -math.inf], dtype=torch.float64))
    assert ends.tolist() == [0.0, 1.0]


def test_ve_is_geometric_and_rises():
    """Equation 9 and appendix C: sigma_i = sigma_min (sigma_max / sigma_min)^((i - 1) / (N - 1))."""
    process = VE(sigma_min=0.02, sigma_max=30.0)
    expected = 0.02 * (30.0 / 0.02) ** T
    torch.testing.assert_close(process.sigma(T), expected)
    torch.testing.assert_close(process.diffusion(T), expected * math.sqrt(2 * math.log(30.0 / 0.02)))
    assert bool((process.sigma(T).diff() > 0).all())
    assert bool((process.drift(torch.ones(len(T), 2), T) == 0).all())


def test_cosine_is_that_of_improved_ddpm_and_ends_without_signal():
    """Equation 17: alpha_bar = f(t) / f(0), f = cos((t + s) / (1 + s) pi / 2)^2."""
    f = torch.cos((T + 0.008) / 1.008 * math.pi / 2).square()
    torch.testing.assert_close(Cosine().alpha(T).square(), f / f[0], rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(Cosine().sigma(T).square(), 1 - f / f[0], rtol=1e-9, atol=1e-15)
    end = Cosine().kernel(1.0)
    assert (float(end.alpha), float(end.sigma)) == (0.0, 1.0)
    assert float(Cosine().diffusion(torch.ones((), dtype=torch.float64))) == math.inf


def test_cosine_without_offset_is_the_quarter_circle_at_both_ends():
    process, angle = Cosine(s=0.0, t_min=0.0), math.pi / 2 * T
    torch.testing.assert_close(process.kernel(T).d_sigma, math.pi / 2 * torch.cos(angle))
    torch.testing.assert_close(process.kernel(T).sigma, torch.sin(angle))


def test_edm_is_linear_and_tells_the_network_log_sigma():
    """c_noise = log(sigma) / 4 in the paper; here the same, moved into [0, 1]."""
    process = EDM()
    t = torch.tensor(time_grid(process, "karras", 50), dtype=torch.float64)
    torch.testing.assert_close(process.sigma(t), 80 * t)
    label, c_noise = process.network_time(t), (80 * t).log() / 4
    slope = label.diff() / c_noise.diff()
    torch.testing.assert_close(slope, slope[:1].expand(49), rtol=1e-9, atol=0)
    assert 0 < float(label.min()) < float(label.max()) < 1
    assert float(process.sigma(t[-1:])) == pytest.approx(0.002)


@pytest.mark.parametrize("unit", [1e-4, 1e-2, 1e2, 1e4])
def test_edm_tells_all_times_apart_in_any_unit_of_the_data(unit):
    process = EDM(sigma_max=80 * unit)
    label = process.network_time(torch.tensor(time_grid(process, "karras", 50), dtype=torch.float64))
    assert float(label.diff().max()) < -1e-3
    assert 0 <= float(label.min()) < float(label.max()) <= 1


def test_edm_time_steps_are_those_of_the_paper():
    """Equation 5, N = 18, rho = 7, sigma from 0.002 to 80."""
    i, process = torch.arange(18, dtype=torch.float64), EDM()
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    got = process.sigma(torch.tensor(time_grid(process, process.grid, 18, rho=7.0), dtype=torch.float64))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("process", "options"),
    [(VP, {"beta_min": 5.0, "beta_max": 1.0}), (SubVP, {"beta_min": 0.0}), (VE, {"sigma_min": 2.0, "sigma_max": 1.0})],
)
def test_options_that_would_not_diffuse_are_refused(process, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        process(**options)
