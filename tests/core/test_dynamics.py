"""The dynamics that share p_t: forward SDE, reverse SDE, probability-flow ODE, and every strength between."""

from __future__ import annotations

import math

import pytest
import torch

from itoflow import ForwardSDE, InputError, NumericalError, ProbabilityFlowODE, ReverseSDE, simulate
from itoflow.testing.assertions import expect_moments
from itoflow.testing.problems import (
    Exploding,
    Preserving,
    Straight,
    UndeclaredOracle,
    gaussian,
    seeded,
)

N = 8000


def grid(start, end, steps):
    return torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()


STRENGTHS = {
    "reverse SDE": None,
    "half of g": lambda process: lambda t: 0.5 * process.diffusion(t),
    "constant": lambda process: lambda t: torch.full_like(t, 1.0),
    "rising": lambda process: lambda t: 2 * t,
}


@pytest.mark.parametrize("process", [Preserving(), Exploding(), Straight(t_max=0.95)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_every_strength_has_the_marginals(process, strength):
    """From exact draws late to early: 8000 draws, 5 standard errors, and 4 per cent for 500 steps."""
    oracle, (late, early) = gaussian(process), (0.9, 0.3)
    eta = STRENGTHS[strength]
    dynamics = ReverseSDE(oracle, eta=None if eta is None else eta(process))
    x = simulate(dynamics, oracle.sample(N, late, generator=seeded(0)), grid(late, early, 500), generator=seeded(1))
    expect_moments(x, *oracle.moments(early), strength, relative=0.04)


@pytest.mark.parametrize("process", [Preserving(), Exploding(), Straight()], ids=lambda p: type(p).__name__)
def test_forward_sde_has_the_marginals(process):
    oracle, (early, late) = gaussian(process), (0.1, 0.9)
    x = oracle.sample(N, early, generator=seeded(0))
    x = simulate(ForwardSDE(process), x, grid(early, late, 500), generator=seeded(1))
    expect_moments(x, *oracle.moments(late), "forward SDE", relative=0.04)


@pytest.mark.parametrize("process", [Preserving(), Exploding(), Straight()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("start", "end"), [(0.9, 0.2), (0.2, 0.9)])
def test_probability_flow_follows_the_exact_flow_both_ways(process, start, end):
    """Euler at n and 2 n steps extrapolated to order 2."""
    oracle = gaussian(process)
    x = oracle.sample(10, start, generator=seeded(0))
    coarse, fine = (simulate(ProbabilityFlowODE(oracle), x, grid(start, end, n)) for n in (1000, 2000))
    torch.testing.assert_close(2 * fine - coarse, oracle.flow(x, start, end), rtol=1e-4, atol=1e-4)


def test_a_wrong_strength_in_the_noise_alone_breaks_the_marginals():
    """The detector: noise that the drift does not answer."""
    oracle = gaussian(Preserving())

    class Unanswered(ProbabilityFlowODE):
        def diffusion(self, t):
            return torch.ones_like(t)

    x = oracle.sample(N, 0.9, generator=seeded(0))
    x = simulate(Unanswered(oracle), x, grid(0.9, 0.3, 500), generator=seeded(1))
    with pytest.raises(AssertionError, match="covariance"):
        expect_moments(x, *oracle.moments(0.3), "unanswered noise", relative=0.04)


def test_the_family_holds_for_a_process_that_is_not_declared_gaussian():
    field = UndeclaredOracle(gaussian(Preserving()))
    x = field.known.sample(N, 0.9, generator=seeded(0))
    x = simulate(ReverseSDE(field), x, grid(0.9, 0.3, 500), generator=seeded(1))
    expect_moments(x, *field.known.moments(0.3), "undeclared", relative=0.04)


def test_drift_of_the_reverse_sde_is_f_minus_g2_score():
    process = Preserving()
    oracle, t = gaussian(process), torch.tensor([0.2, 0.6], dtype=torch.float64)
    x = oracle.sample(2, 0.5, generator=seeded(0))
    expected = process.drift(x, t) - process.diffusion(t).square()[:, None] * oracle(x, t).score
    torch.testing.assert_close(ReverseSDE(oracle).drift(x, t), expected)
    torch.testing.assert_close(ReverseSDE(oracle).diffusion(t), process.diffusion(t))


@pytest.mark.parametrize("times", [[0.5], [], [0.5, 0.5], [0.1, 0.4, 0.3]])
def test_times_must_run_one_way(times):
    with pytest.raises(InputError, match="strictly"):
        simulate(ForwardSDE(Preserving()), torch.zeros(1, 1), times)


def test_a_non_finite_state_names_dynamics_step_and_times():
    """g is infinite at t = 1 of a straight path."""
    field = gaussian(Straight())
    with pytest.raises(NumericalError, match=r"ReverseSDE gave a non-finite state at step 1 of 10, from t = 1 to 0.9"):
        simulate(ReverseSDE(field), torch.zeros(2, 2, dtype=torch.float64), grid(1.0, 0.0, 10), generator=seeded(0))


def test_simulation_is_euler_maruyama_with_the_given_noise():
    process, x = Preserving(), torch.ones(3, 2, dtype=torch.float64)
    z = torch.randn(3, 2, dtype=torch.float64, generator=seeded(4))
    t = torch.tensor(0.2, dtype=torch.float64)
    expected = x + 0.1 * process.drift(x, t) + math.sqrt(0.1) * process.diffusion(t) * z
    torch.testing.assert_close(simulate(ForwardSDE(process), x, [0.2, 0.3], generator=seeded(4)), expected)
