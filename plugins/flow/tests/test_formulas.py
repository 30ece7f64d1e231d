"""The paths are those of the papers, in both orientations of time: tau = 1 - t has data at 1 and velocity -u."""

from __future__ import annotations

import math

import pytest
import torch

from itoflow_flow.bridge import BrownianBridge
from itoflow_flow.interpolant import Interpolant
from itoflow_flow.linear import Linear
from itoflow_flow.polynomial import Polynomial
from itoflow_flow.trigonometric import Trigonometric

TAU = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
DATA, BASE = (torch.randn(7, 3, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))


def published(name):
    """x_tau and its velocity as taught: base at tau = 0, data at tau = 1."""
    tau, half = TAU[:, None], math.pi / 2
    if name == "linear":
        return tau * DATA + (1 - tau) * BASE, DATA - BASE
    if name == "minimal sigma":
        return tau * DATA + (1 - (1 - 0.1) * tau) * BASE, DATA - (1 - 0.1) * BASE
    if name == "trigonometric":
        x = torch.sin(half * tau) * DATA + torch.cos(half * tau) * BASE
        return x, half * (torch.cos(half * tau) * DATA - torch.sin(half * tau) * BASE)
    return tau**3 * DATA + (1 - tau**3) * BASE, 3 * tau**2 * (DATA - BASE)


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("linear", Linear()),
        ("minimal sigma", Linear(sigma_min=0.1)),
        ("trigonometric", Trigonometric()),
        ("polynomial", Polynomial(power=3.0)),
    ],
)
def test_path_and_velocity_in_the_orientation_of_the_papers(name, process):
    x, u = published(name)
    sample = process.path(DATA, BASE, 1 - TAU)
    torch.testing.assert_close(sample.x, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(-process.path_velocity(sample), u, rtol=0, atol=1e-12)


def test_bridge_has_the_law_of_brownian_motion_between_its_ends():
    """Mean (1 - t) x_0 + t x_1 and covariance s^2 min(t, t') (1 - max(t, t')), of which the diagonal is gamma^2."""
    process, t = BrownianBridge(sigma=0.7), TAU
    torch.testing.assert_close(process.gamma(t), 0.7 * (t * (1 - t)).sqrt())
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sample = process.path(DATA, BASE, t, z=z)
    u = BASE - DATA + 0.7 * ((1 - 2 * t) / (2 * (t * (1 - t)).sqrt()))[:, None] * z
    torch.testing.assert_close(process.path_velocity(sample), u)
    assert torch.equal(process.diffusion(t), torch.full_like(t, 0.7))


@pytest.mark.parametrize("curve", ["linear", "trigonometric"])
@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_interpolant_turned_around_is_itself(curve, sigma):
    """With the ends exchanged and t -> 1 - t, the same x and the opposite velocity."""
    process, z = Interpolant(curve=curve, sigma=sigma), torch.randn(7, 3, dtype=torch.float64)
    one, other = process.path(DATA, BASE, TAU, z=z), process.path(BASE, DATA, 1 - TAU, z=z)
    torch.testing.assert_close(one.x, other.x)
    torch.testing.assert_close(process.path_velocity(one), -process.path_velocity(other))


def test_trigonometric_preserves_variance_and_linear_reaches_the_noise_exactly():
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    circle = Trigonometric()
    torch.testing.assert_close(circle.alpha(t) ** 2 + circle.sigma(t) ** 2, torch.ones_like(t))
    for process in (circle, Linear()):
        assert float(process.alpha(t)[-1]) == 0
        assert float(process.sigma(t)[0]) == 0
