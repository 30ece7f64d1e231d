"""Couplings: optimal where they say so, and always with the marginals that they were given."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from itoflow import InputError, ItoflowWarning, OptionError
from itoflow.testing.assertions import check_options
from itoflow_flow import plugin, transport_cost
from itoflow_flow.conditional_transport import ConditionalTransport
from itoflow_flow.coupling import spread, squared_distances
from itoflow_flow.independent import Independent
from itoflow_flow.matching import FlowMatching
from itoflow_flow.optimal_transport import OptimalTransport
from itoflow_flow.sinkhorn import Sinkhorn

COUPLINGS = (Independent(), OptimalTransport(), Sinkhorn(), ConditionalTransport())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d=2, seed=0):
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("coupling", COUPLINGS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (40, 40), (40, 7), (7, 40), (64, 33)])
def test_indices_take_every_x1_evenly(coupling, n, m):
    """Each x1 is used floor(n/m) or ceil(n/m) times by a permutation; by the plan's draws at most n times."""
    cond = {"class": torch.arange(n) % 3}
    chosen = coupling(normal(n), normal(m, seed=1), cond, generator=seeded(2))
    assert chosen.shape == (n,)
    assert chosen.dtype == torch.int64
    counts = torch.bincount(chosen, minlength=m)
    assert counts.shape == (m,)
    if not isinstance(coupling, Sinkhorn):
        assert int(counts.max()) <= -(-n // m)
        assert int(counts.min()) >= n // m
    again = coupling(normal(n), normal(m, seed=1), cond, generator=seeded(2))
    assert torch.equal(chosen, again)


@pytest.mark.parametrize("coupling", COUPLINGS, ids=lambda c: type(c).__name__)
def test_data_of_any_shape_and_no_far_end(coupling):
    x0 = torch.randn(6, 1, 3, 3, generator=seeded())
    assert coupling(x0, x0.flip(0), generator=seeded()).shape == (6,)
    with pytest.raises(InputError, match="at least one x1"):
        coupling(x0, x0[:0], generator=seeded())


@pytest.mark.parametrize("coupling", COUPLINGS, ids=lambda c: type(c).__name__)
def test_an_empty_batch_has_no_pairs(coupling):
    assert coupling(normal(0), normal(5), generator=seeded()).shape == (0,)


@pytest.mark.parametrize("coupling", COUPLINGS[1:], ids=lambda c: type(c).__name__)
def test_ends_without_distances_are_refused(coupling):
    x0 = normal(6)
    for bad in (float("nan"), float("inf")):
        broken = x0.clone()
        broken[2, 1] = bad
        for ends in ((broken, x0), (x0, broken)):
            with pytest.raises(InputError, match="NaN or infinite"):
                coupling(*ends, generator=seeded())
    with pytest.raises(InputError, match="one shape"):
        coupling(x0, normal(6, 3), generator=seeded())


def test_conditions_of_another_length_are_refused():
    """They would leave some rows without a class, and so without a match."""
    for cond in ({"class": torch.arange(3)}, {"vector": normal(7)}):
        with pytest.raises(InputError, match="a row for each of 6 x0"):
            ConditionalTransport()(normal(6), normal(6), cond, generator=seeded())


@pytest.mark.parametrize("coupling", COUPLINGS, ids=lambda c: type(c).__name__)
def test_options(coupling):
    check_options(coupling)


def test_optimal_transport_is_the_best_of_all_permutations():
    for seed in range(20):
        x0, x1 = normal(6, seed=seed), normal(6, seed=100 + seed)
        found = transport_cost(x0, x1[OptimalTransport()(x0, x1)])
        best = min(transport_cost(x0, x1[list(order)]) for order in permutations(range(6)))
        assert found == pytest.approx(best, abs=1e-12)


def test_optimal_transport_does_not_depend_on_the_scale_of_the_noise():
    x0, x1 = normal(50), normal(50, seed=1)
    assert torch.equal(OptimalTransport()(x0, x1), OptimalTransport()(x0, 80 * x1))


def test_blocks_of_a_large_batch_are_paired_by_themselves():
    """Between the cost of one block and that of no coupling; every x1 once."""
    x0, x1 = normal(600), normal(600, seed=1)
    whole, cut = OptimalTransport(block=600)(x0, x1), OptimalTransport(block=100)(x0, x1, generator=seeded())
    assert torch.equal(cut.sort().values, torch.arange(600))
    costs = [transport_cost(x0, x1[chosen]) for chosen in (whole, cut, torch.arange(600))]
    assert costs[0] < costs[1] < 0.5 * costs[2]


def test_sinkhorn_plan_has_its_marginals_and_its_limits():
    x0, x1 = normal(30), normal(30, seed=1)
    cost = squared_distances(x0, x1)
    plan = Sinkhorn(epsilon=0.1, tolerance=1e-4, iterations=5000).log_plan(cost).exp()
    plan = plan / plan.sum()
    torch.testing.assert_close(plan.sum(1), torch.full((30,), 1 / 30, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((30,), 1 / 30, dtype=torch.float64), rtol=1.1e-4, atol=0)
    loose = Sinkhorn(epsilon=1e6, relative=False).log_plan(cost).softmax(1)
    torch.testing.assert_close(loose, torch.full_like(loose, 1 / 30), rtol=1e-3, atol=0)
    sharp = Sinkhorn(epsilon=1e-3, iterations=10_000)(x0, x1, generator=seeded())
    best = transport_cost(x0, x1[OptimalTransport()(x0, x1)])
    assert transport_cost(x0, x1[sharp]) == pytest.approx(best, rel=0.1)


def test_sinkhorn_uses_every_x1_alike_at_small_epsilon():
    """Within the tolerance by default, where a hundred iterations leave columns that are off by 14 per cent."""
    cost = squared_distances(normal(100), normal(100, seed=1))
    drawn_from = Sinkhorn(epsilon=1e-2).log_plan(cost).softmax(1)
    torch.testing.assert_close(drawn_from.sum(0), torch.ones(100, dtype=torch.float64), rtol=0, atol=0.0101)


def test_sinkhorn_says_when_its_plan_prefers_some_x1():
    with pytest.warns(ItoflowWarning, match=r"not balanced after iterations=3.*epsilon \(now 0.0001\)"):
        Sinkhorn(epsilon=1e-4, iterations=3)(normal(50), normal(50, seed=1), generator=seeded())


def test_sinkhorn_between_gaussians_has_the_known_covariance():
    """For N(0, 1) twice and entropy weight e the plan is Gaussian with covariance (sqrt(16 + e^2) - e) / 4.

    Janati et al. (2020), https://arxiv.org/abs/2006.02572, theorem 1, for |x - y|^2. Within 0.05 for 1000
    points; chance exceeds that in less than 1 of 10^4 seeds.
    """
    x0, x1 = normal(1000, 1), normal(1000, 1, seed=1)
    x0, x1 = (x0 - x0.mean()) / x0.std(), (x1 - x1.mean()) / x1.std()
    for epsilon in (1.0, 4.0):
        plan = Sinkhorn(epsilon=epsilon, relative=False).log_plan(squared_distances(x0, x1)).softmax(1)
        covariance = float((x0 * (plan @ x1)).mean())
        assert covariance == pytest.approx(((16 + epsilon**2) ** 0.5 - epsilon) / 4, abs=0.05)


def test_conditional_transport_keeps_the_base_of_each_class():
    """Plain transport gives a class the noise beside it; the conditional one gives each class what chance gives it."""
    x0 = torch.cat([normal(200) - 3, normal(200, seed=1) + 3])
    x1, label = normal(400, seed=2), torch.arange(400) // 200
    plain = x1[OptimalTransport()(x0, x1)]
    kept = x1[ConditionalTransport()(x0, x1, {"class": label}, generator=seeded(3))]
    assert float(plain[label == 0].mean()) < -0.4
    for value in (0, 1):
        assert abs(float(kept[label == value].mean())) < 0.25  # 5 standard errors of 400 values
    drawn = spread(400, 400, x0.device, seeded(3))
    assert transport_cost(x0, kept) < transport_cost(x0, x1[drawn]) - 0.5
    for value in (0, 1):
        rows = (label == value).nonzero()[:, 0]
        block = x1[drawn[rows]]
        best = transport_cost(x0[rows], block[OptimalTransport()(x0[rows], block)])
        assert transport_cost(x0[rows], kept[rows]) == pytest.approx(best, rel=1e-9)


def test_conditional_transport_with_vectors_lies_between_none_and_plain():
    x0, x1 = normal(200), normal(200, seed=1)
    vectors = {"vector": normal(200, 4, seed=2)}
    partners = spread(200, 200, x0.device, seeded(3))
    cost = squared_distances(x0, x1[partners])
    unit = torch.nn.functional.normalize(vectors["vector"], dim=1)
    mismatch = 1 - unit @ unit.T
    for ratio, unit in ((0.01, 1.0), (0.1, 1.0), (0.01, 1e14)):
        priced = ConditionalTransport(ratio=ratio).conditioned(unit * cost, mismatch)
        assert float((priced <= unit * cost.diagonal()).double().mean()) == pytest.approx(ratio, abs=2e-3)
    chosen = ConditionalTransport(ratio=0.05)(x0, x1, vectors, generator=seeded(3))
    plain = transport_cost(x0, x1[OptimalTransport()(x0, x1)])
    none = transport_cost(x0, x1[partners])
    assert plain < transport_cost(x0, x1[chosen]) < none
    bare = ConditionalTransport()(x0, x1, generator=seeded(3))
    assert transport_cost(x0, x1[bare]) == pytest.approx(plain, rel=1e-9)


def test_names_are_registered_and_options_are_checked():
    names = {r.name for r in plugin.itoflow_couplings()}
    assert names == {"independent", "optimal-transport", "sinkhorn", "conditional-optimal-transport"}
    for part in ("c2ot", {"name": "sinkhorn", "epsilon": 0.2}):
        assert FlowMatching(coupling=part).coupling != Independent()
    with pytest.raises(OptionError, match="epsilon"):
        Sinkhorn(epsilon=0.0)
