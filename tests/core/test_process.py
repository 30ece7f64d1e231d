"""Processes: what follows from (alpha, sigma) or from (drift, diffusion) alone, against closed forms."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from itoflow import GaussianProcess, NumericalError, OptionError, ProcessSpec, SpecError
from itoflow.noise import normal
from itoflow.testing.assertions import expect_moments
from itoflow.testing.problems import Preserving, Straight, Undeclared, seeded


def at(values):
    return torch.tensor(values, dtype=torch.float64)


class Bare(GaussianProcess):
    """The two formulas of `Preserving` and nothing else: everything is derived."""

    t_min: float = 1e-3

    def alpha(self, t):
        return torch.cos(1.56 * t)

    def sigma(self, t):
        return torch.sin(1.56 * t)


class Linear(ProcessSpec):
    """Ornstein-Uhlenbeck dx = -k x dt + s dw: x_t ~ N(e^-kt x0, s^2 (1 - e^-2kt) / 2k)."""

    k: float = 2.0
    s: float = 1.5

    def drift(self, x, t):
        return -self.k * x

    def diffusion(self, t):
        return torch.full_like(t, self.s)

    def prior(self, shape, *, like, generator=None):
        return normal(shape, like=like, generator=generator) * self.s / math.sqrt(2 * self.k)

    def prior_log_prob(self, x):
        return -(x.flatten(1) ** 2).sum(1) * self.k / self.s**2


class DoubleWell(Linear):
    """dx = (x - x^3) T dt + sqrt(2 T) dw, T the time scale: stationary density exp(x^2/2 - x^4/4) / Z."""

    simulation_steps: ClassVar[int] = 1000
    T: float = 8.0

    def drift(self, x, t):
        return self.T * (x - x**3)

    def diffusion(self, t):
        return torch.full_like(t, math.sqrt(2 * self.T))


def test_derived_derivatives_drift_and_diffusion_equal_closed_forms():
    bare, known = Bare(), Preserving()
    t = torch.linspace(1e-3, 1, 50, dtype=torch.float64)
    for name in ("d_alpha", "d_sigma", "diffusion", "log_snr"):
        torch.testing.assert_close(getattr(bare, name)(t), getattr(known, name)(t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bare.diffusion(t), (2 * 1.56 * torch.tan(1.56 * t)).sqrt(), rtol=1e-10, atol=1e-10)
    x = torch.randn(50, 3, dtype=torch.float64, generator=seeded(0))
    torch.testing.assert_close(bare.drift(x, t), -1.56 * torch.tan(1.56 * t)[:, None] * x, rtol=1e-10, atol=1e-10)


def test_bisection_inverts_the_log_snr_and_clips():
    values = at([[4.0, 0.0], [-3.0, -8.0]])
    t = Bare().log_snr_inverse(values)
    torch.testing.assert_close(t, torch.atan(torch.exp(-values / 2)) / 1.56, rtol=1e-12, atol=1e-12)
    assert Bare().log_snr_inverse(at([1e4, -1e4])).tolist() == pytest.approx([1e-3, 1.0], abs=1e-15)


def test_diffusion_is_infinite_where_no_signal_is_left_and_prior_std_is_sigma():
    g = Straight().diffusion(at([0.5, 1.0]))
    assert g.tolist() == [pytest.approx(math.sqrt(2)), math.inf]  # g^2 = 2 t / (1 - t)
    assert Bare(t_max=0.5).prior_std() == pytest.approx(math.sin(0.78))


def test_kernel_broadcasts_time_against_data_and_names_a_formula_that_breaks_shape():
    k = Bare().kernel(at([0.1, 0.2]), 4)
    assert k.alpha.shape == (2, 1, 1, 1)
    assert Bare().kernel(0.3, 4).sigma.shape == ()

    class Scalar(Bare):
        def alpha(self, t):
            return 1.0

    class Flat(Bare):
        def sigma(self, t):
            return t.sum()

    with pytest.raises(
        SpecError, match=r"Scalar.alpha\(t\) must return a tensor of t's shape \(2,\); it returned float"
    ):
        Scalar().kernel(at([0.1, 0.2]))
    with pytest.raises(SpecError, match=r"Flat.sigma\(t\).*shape \(\)"):
        Flat().kernel(at([0.1, 0.2]))


def test_interval_is_validated():
    with pytest.raises(OptionError, match=r"t_min = 0\.6, t_max = 0\.5"):
        Bare(t_min=0.6, t_max=0.5)
    with pytest.raises(OptionError, match="t_max"):
        Bare(t_max=1.5)


def test_prior_log_prob_is_the_normal_density_of_all_values():
    x = torch.randn(4, 2, 3, dtype=torch.float64, generator=seeded(0))
    expected = torch.distributions.Normal(0.0, Bare().prior_std()).log_prob(x).sum((1, 2))
    torch.testing.assert_close(Bare().prior_log_prob(x), expected)


def test_simulated_perturbation_of_a_linear_sde_has_the_closed_form_law():
    """20000 draws: 5 standard errors; the step's own error is below 0.5 per cent at 1000 steps."""
    for t in (0.1, 0.7):
        x0 = torch.full((20_000, 1), 1.3, dtype=torch.float64)
        sample = Linear().perturb(x0, torch.full((20_000,), t), generator=seeded(0))
        mean, variance = math.exp(-2 * t) * 1.3, 1.5**2 * (1 - math.exp(-4 * t)) / 4
        expect_moments(sample.x, at([mean]), at([[variance]]), "perturb", relative=0.005)
        assert sample.t.dtype == torch.float64
        assert sample.eps is None


def test_simulated_perturbation_takes_each_row_to_its_own_time():
    x0 = torch.ones(3, 2, dtype=torch.float64)
    together = Linear(s=0.0).perturb(x0, at([0.0, 0.25, 1.0]), generator=seeded(0)).x  # no noise: an ODE
    torch.testing.assert_close(together[:, 0], torch.exp(-2 * at([0.0, 0.25, 1.0])), rtol=0, atol=2e-3)
    assert bool((together[0] == 1).all())


def test_double_well_reaches_its_stationary_law():
    """Moments of exp(x^2/2 - x^4/4) by quadrature; 20000 draws, 5 standard errors and 2 per cent for the step."""
    grid = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    density = torch.exp(grid**2 / 2 - grid**4 / 4)
    density = density / torch.trapezoid(density, grid)
    x0 = torch.full((20_000, 1), 0.8, dtype=torch.float64)  # started off centre, so that both wells must be reached
    x = DoubleWell().perturb(x0, torch.ones(20_000), generator=seeded(0)).x
    for power in (1, 2, 4):
        moment = float(torch.trapezoid(grid**power * density, grid))
        spread = float(torch.trapezoid(grid ** (2 * power) * density, grid)) - moment**2
        allowed = 5 * math.sqrt(spread / len(x)) + 0.02 * math.sqrt(spread)
        assert float((x**power).mean()) == pytest.approx(moment, abs=allowed), f"moment {power}"


def test_an_explosion_is_an_error_that_names_process_and_time():
    class Runaway(DoubleWell):
        def drift(self, x, t):
            return 50 * x**3

    with pytest.raises(NumericalError, match=r"Runaway\(.*non-finite state near t = .*simulation_steps"):
        Runaway().perturb(torch.ones(4, 1), torch.ones(4), generator=seeded(0))


def test_undeclared_process_has_no_noise_to_return():
    assert Undeclared().perturb(torch.zeros(2, 2), torch.tensor([0.2, 0.9]), generator=seeded(0)).eps is None


def test_formulas_that_torch_cannot_differentiate_are_named_with_what_to_do():
    class Foreign(Bare):
        def alpha(self, t):
            return torch.as_tensor(np.cos(np.asarray(t)))

        def d_sigma(self, t):
            return torch.ones_like(t)

    class Both(Foreign):
        def d_alpha(self, t):
            return -torch.sin(t)

    with pytest.raises(
        SpecError, match=r"Foreign\.alpha has no derivative .*not with numpy or math, or define d_alpha"
    ):
        Foreign().kernel(0.5)
    assert float(Both().kernel(0.5).alpha) == pytest.approx(math.cos(0.5))
