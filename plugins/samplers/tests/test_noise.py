"""The noise of stochastic methods: paths that other numbers of steps keep, batches, and what a run holds."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from itoflow import NetworkField, Parametrization
from itoflow.testing import GaussianOracle
from itoflow.testing.memory import Scaled, held
from itoflow.testing.problems import Exploding, Preserving, Straight, gaussian, mixture, seeded
from itoflow_samplers.churn import Churn
from itoflow_samplers.ddim import Ancestral
from itoflow_samplers.sa_solver import SASolver, StochasticAdams
from itoflow_samplers.sde import EulerMaruyama, ReverseDiffusion
from itoflow_samplers.sde_dpm_solver import SDEDPMSolver

PATHS = [Preserving(), Exploding()]
EXACT = [SDEDPMSolver(order=1, steps=9), SDEDPMSolver(steps=9), SASolver(corrector=0)]
NOISY = [EulerMaruyama(), ReverseDiffusion(), Ancestral(), SDEDPMSolver(), SASolver(), StochasticAdams(), Churn()]
SPLIT = [SDEDPMSolver(), SASolver(), Churn(s_churn=5.0), Ancestral()]


@pytest.mark.parametrize("process", [*PATHS, Straight(t_min=0.05)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("sampler", EXACT, ids=repr)
@pytest.mark.parametrize("k", [0.5, 1.0])
def test_a_brownian_path_does_not_depend_on_the_steps(process, sampler, k):
    """Data at one point: x0 is exact, so that 5 and 40 steps end at the same place, to rounding, noise included."""
    oracle = GaussianOracle(process, torch.tensor([0.3, -0.8], dtype=torch.float64), 0.0)
    x = oracle.sample(6, 1.0, generator=seeded(0))
    sampler = sampler.replace(strength=k, noise="brownian", denoise=False)
    last = 0.1

    def run(steps):
        times = tuple(torch.linspace(1.0, last, steps + 1, dtype=torch.float64).tolist())
        seen = []
        sampler.replace(steps=steps, grid=times)(oracle, x, generator=seeded(3), callback=seen.append)
        return seen[-1].x

    few, many = run(5), run(40)
    torch.testing.assert_close(few, many, rtol=1e-7, atol=1e-7)
    sampler = sampler.replace(noise="independent")
    assert not torch.allclose(run(5), run(40), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("sampler", NOISY, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("process", [*PATHS, Straight()], ids=lambda p: type(p).__name__)
def test_more_steps_converge_to_one_path(sampler, process):
    """Strong convergence: from 200 to 400 steps a path moves far less than two paths differ."""
    oracle = gaussian(process)
    x = oracle.sample(200, 1.0, generator=seeded(0))
    sampler = sampler.replace(noise="brownian")
    near, far = (sampler.replace(steps=n)(oracle, x, generator=seeded(3)) for n in (200, 400))
    other = sampler.replace(steps=400)(oracle, x, generator=seeded(4))
    moved, apart = ((a - b).square().mean().sqrt() for a, b in ((near, far), (far, other)))
    assert float(moved / apart) < 0.12, float(moved / apart)


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        *[(method(), 1) for method in (EulerMaruyama, ReverseDiffusion, Ancestral)],
        (Churn(), 2),
        *[(method(order=k), k) for method in (SDEDPMSolver, StochasticAdams) for k in (1, 2)],
        *[(SASolver(order=k), k + 1) for k in (1, 2, 3)],
    ],
    ids=repr,
)
def test_memory_is_at_most_order_and_three_tensors(sampler, order, noise):
    """Counted by storage over a run; SA-Solver's order is its predictor's plus one. A path of its own takes no more."""
    for process in (*PATHS, Straight()):
        field = NetworkField(Scaled(), process, Parametrization(prediction="v"))
        x, run = torch.randn(16, 100, generator=seeded(0)), sampler.replace(steps=10, noise=noise)
        assert held(partial(run, field), x) <= order + 3


@pytest.mark.parametrize("sampler", SPLIT, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("noise", ["independent", "brownian"])
def test_batch_splits_are_equal_bit_for_bit(sampler, noise):
    """Batches of the same kernel size: each sample with 7 others, whichever they are."""
    sampler = sampler.replace(noise=noise)
    oracle = mixture(Preserving())
    x = oracle.sample(16, 1.0, generator=seeded(0))
    order = torch.randperm(16, generator=seeded(1)).tolist()

    def run(indices):
        return sampler.replace(steps=6)(oracle, x[indices], generator=[seeded(100 + i) for i in indices])

    first = torch.cat([run(list(range(8))), run(list(range(8, 16)))])
    second = torch.cat([run(order[:8]), run(order[8:])])
    assert torch.equal(first[order], second)
    torch.testing.assert_close(first, run(list(range(16))), rtol=1e-6, atol=1e-6)
