"""A path that is a function of its seed: its law, its consistency, and its independence of what else is asked."""

from __future__ import annotations

from itertools import pairwise

import torch

from itoflow.brownian import Brownian
from itoflow.testing.memory import Peak
from itoflow.testing.problems import seeded

READINGS = (0.0, 1e-4, 0.3, 0.31, 1.0, 1.5, 2.7, 2.75, 900.0)


def path(readings, *, size=4, generator=None, dtype=torch.float64):
    """B at the readings but the first, relative to the first: (R - 1, size)."""
    like = torch.empty(size, dtype=dtype)
    motion = Brownian(generator or seeded(5), readings, like)
    steps = [(b - a) ** 0.5 * motion.increment(a, b, torch.empty_like(like)) for a, b in pairwise(readings)]
    return torch.stack(steps).cumsum(0)


def test_increments_are_independent_and_standard_normal():
    """50,000 paths, all 8 x 8 covariances within 5 standard errors; false alarm 36 x 6e-7."""
    n = 50_000
    like = torch.empty(n, dtype=torch.float64)
    motion = Brownian(seeded(0), READINGS, like)
    z = torch.stack([motion.increment(a, b, torch.empty_like(like)) for a, b in pairwise(READINGS)])
    covariance = z @ z.T / n
    floor = 5 * (1 + torch.eye(len(z))).sqrt() / n**0.5
    assert bool(((covariance - torch.eye(len(z))).abs() < floor).all()), covariance
    assert float(z.mean(1).abs().max()) < 5 / n**0.5
    assert bool(((z**4).mean(1) - 3).abs().max() < 5 * 96**0.5 / n**0.5)


def test_another_grid_sees_the_same_path():
    """At the times that both ask for, but for what lies 64 octaves below, and whatever lies between."""
    fine, coarse = path(READINGS), path((0.0, 0.31, 1.5, 900.0))
    torch.testing.assert_close(fine[[2, 4, 7]], coarse, rtol=1e-8, atol=1e-8)


def test_readings_close_together_are_distinct_and_right():
    """A millionth of an octave apart, 20,000 paths: unit variance, no correlation, 5 standard errors."""
    n, readings = 20_000, (1.0, 1.5, 1.5 + 1e-7, 1.5 + 2e-7)
    like = torch.empty(n, dtype=torch.float64)
    motion = Brownian(seeded(0), readings, like)
    z = torch.stack([motion.increment(a, b, torch.empty_like(like)) for a, b in pairwise(readings)])
    assert bool((z @ z.T / n - torch.eye(3)).abs().max() < 5 * (2 / n) ** 0.5)


def test_any_finite_clock_is_right_in_any_dtype():
    """Samplers' clocks reach e^700, far beyond float32; 20,000 paths, unit variance within 5 standard errors."""
    n, readings = 20_000, (0.0, 1e-300, 1.0, 1e30, 1e300, 1.1e300)
    for dtype in (torch.float32, torch.float64):
        like = torch.empty(n, dtype=dtype)
        motion = Brownian(seeded(0), readings, like)
        z = torch.stack([motion.increment(a, b, torch.empty_like(like)) for a, b in pairwise(readings)])
        assert bool((z @ z.T / n - torch.eye(5, dtype=dtype)).abs().max() < 5 * (2 / n) ** 0.5)


def test_an_increment_is_formed_in_its_place_with_one_tensor_more():
    out = torch.empty(1000)
    motion = Brownian(seeded(0), READINGS, out)
    for a, b in pairwise(READINGS):
        with Peak(out) as held:
            motion.increment(a, b, out)
        assert held.peak <= 2


def test_a_sample_with_its_own_generator_has_its_own_path_in_any_batch():
    def draw(*seeds):
        return path((0.1, 0.5, 3.0), size=(len(seeds), 2), generator=[seeded(s) for s in seeds])

    together = draw(5, 6, 7)
    assert torch.equal(together, torch.cat([draw(5), draw(6, 7)], 1))
    assert not torch.equal(together[:, 0], together[:, 1])


def test_paths_of_two_draws_from_one_generator_differ():
    generator = seeded(0)
    assert not torch.equal(path((0.1, 0.5), generator=generator), path((0.1, 0.5), generator=generator))
