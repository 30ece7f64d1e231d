"""Every detector of processes fires on one that is broken in one way, and says what is wrong."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from itoflow import (
    InterpolantProcess,
    ReverseSDE,
    Spec,
)
from itoflow.testing import interpolants, marginals, processes
from itoflow.testing.interpolants import Joined
from itoflow.testing.problems import Exploding, Preserving, Undeclared
from itoflow.testing.variants import variant


def blown(self, t):
    """alpha = 0 at t_max, nearly: x0 is then a small difference of large numbers."""
    return torch.cos(torch.pi / 2 * t)


PROCESSES = [
    ("check_shapes", variant(Preserving, alpha=lambda self, t: 0.5), "alpha"),
    ("check_shapes", variant(Exploding, alpha=lambda self, t: torch.ones((), dtype=t.dtype)), "shape"),
    ("check_shapes", variant(Preserving, diffusion=lambda self, t: t.float()), "float32"),
    ("check_shapes", variant(Preserving, network_time=lambda self, t: 0.3), "network_time"),
    ("check_shapes", variant(Undeclared, drift=lambda self, x, t: -x.double()), "drift"),
    ("check_network_time", variant(Preserving, network_time=lambda self, t: 1000 * t), r"\[0, 1\]"),
    ("check_network_time", variant(Preserving, network_time=lambda self, t: 1 - t), "does not increase"),
    ("check_kernel", variant(Preserving, sigma=lambda self, t: -torch.sin(1.56 * t)), "must be >= 0"),
    ("check_kernel", variant(Preserving, d_sigma=lambda self, t: 1 / (1 - t)), "must be finite"),
    ("check_kernel", variant(Preserving, sigma=lambda self, t: (t - 0.5).clamp(min=0)), "more than one time"),
    ("check_derivatives", variant(Preserving, d_alpha=lambda self, t: torch.sin(1.56 * t)), "d_alpha"),
    ("check_derivatives", variant(Preserving, d_sigma=lambda self, t: 1.5601 * torch.cos(1.56 * t)), "d_sigma"),
    ("check_sde", variant(Preserving, diffusion=lambda self, t: 2**0.5 * Preserving().diffusion(t)), "diffusion"),
    ("check_sde", variant(Preserving, drift=lambda self, x, t: 0.5 * Preserving().drift(x, t)), "drift"),
    ("check_sde", variant(Undeclared, diffusion=lambda self, t: -Preserving().diffusion(t)), "negative"),
    ("check_log_snr", variant(Exploding, sigma=lambda self, t: 0.1 + t * (1.2 - t)), "does not fall"),
    ("check_log_snr", variant(Preserving, log_snr_inverse=lambda self, v: torch.sigmoid(-v)), "log_snr_inverse"),
    (
        "check_posterior",
        variant(
            Preserving,
            d_sigma=lambda self, t: 1.2 * torch.cos(1.56 * t),
            diffusion=lambda self, t: Preserving().diffusion(t),
        ),
        "velocity",
    ),
    ("check_sampling", variant(Exploding, prior_std=lambda self: 1.0), "from its prior"),
    ("check_sampling", variant(Preserving, d_alpha=lambda self, t: 0 * t), "Euler steps"),
    ("check_forward", variant(Preserving, diffusion=lambda self, t: 1.3 * Preserving().diffusion(t)), "forward SDE"),
    ("check_forward", variant(Undeclared, drift=lambda self, x, t: 0 * x), "perturb"),
    (
        "check_perturb",
        variant(Preserving, perturb=lambda self, x0, t, generator=None: Preserving().perturb(x0, t)),
        "default generator",
    ),
    (
        "check_perturb",
        variant(
            Exploding, perturb=lambda self, x0, t, generator=None: Preserving().perturb(x0, t, generator=generator)
        ),
        "x of Variant.perturb",
    ),
    (
        "check_prior",
        variant(Preserving, prior=lambda self, shape, *, like, generator=None: torch.randn(shape)),
        "default",
    ),
    ("check_prior", variant(Preserving, prior_log_prob=lambda self, x: -x.square().flatten(1).sum(1)), "integrates"),
    (
        "check_prior",
        variant(
            Undeclared,
            prior=lambda self, shape, *, like, generator=None: (
                1.2 * Preserving().prior(shape, like=like, generator=generator)
            ),
        ),
        "do not follow",
    ),
    ("check_prior_matches", Preserving(t_max=0.7), "nats per value"),
    ("check_prior_matches", variant(Exploding, prior_std=lambda self: 5.0), "nats per value"),
]


@pytest.mark.parametrize(("check", "broken", "says"), PROCESSES)
def test_process_detector_fires(check, broken, says):
    with pytest.raises(AssertionError, match=says):
        getattr(processes, check)(broken)


def test_every_process_check_has_a_case_that_fires():
    assert {check for check, _, _ in PROCESSES} == {c.__name__ for c in processes.CHECKS} - {"check_options"}


def half_gamma(self, t):
    return Joined().gamma(t) / 2


TWO_ENDED = [
    ("check_ends", variant(Joined, alpha=lambda self, t: 1 - 0.9 * t), "x_0 and x_1 are the ends"),
    ("check_ends", variant(Joined, gamma=lambda self, t: -Joined().gamma(t)), "negative"),
    ("check_ends", variant(Joined, beta=lambda self, t: 0.5), "float64 tensor"),
    ("check_ends", variant(Joined, d_gamma=lambda self, t: 1 / t), "must be finite"),
    ("check_end_derivatives", variant(Joined, d_gamma=half_gamma), "d_gamma"),
    ("check_path", variant(Joined, path_velocity=lambda self, s: s.x1 - s.x0), "path_velocity"),
    ("check_path", variant(Joined, drift=lambda self, x, t: 0 * x), "undefined"),
    (
        "check_path",
        variant(
            Joined,
            path=lambda self, x0, x1, t, *, generator=None, z=None: InterpolantProcess.path(
                self, x0, x1, t, z=torch.zeros_like(x0) if z is None else z
            ),
        ),
        "covariance",
    ),
]


@pytest.mark.parametrize(("check", "broken", "says"), TWO_ENDED)
def test_detector_of_processes_between_two_data_sets_fires(check, broken, says):
    with pytest.raises(AssertionError, match=says):
        getattr(interpolants, check)(broken)


def test_every_check_of_processes_between_two_data_sets_has_a_case_that_fires():
    assert {check for check, _, _ in TWO_ENDED} == {c.__name__ for c in interpolants.CHECKS}


@pytest.mark.parametrize(
    "broken",
    [
        variant(Preserving, d_sigma=lambda self, t: 0.5 * Preserving().d_sigma(t)),
        variant(Joined, d_beta=lambda self, t: 0.5 * torch.ones_like(t)),
    ],
    ids=["Gaussian", "two data sets"],
)
def test_marginals_detector_fires(broken):
    with pytest.raises(AssertionError, match="differs from p_t"):
        marginals.check_marginals(broken)


def test_marginals_detector_fires_on_a_wrong_reverse_sde(monkeypatch):
    """The strength counted twice: the ODE passes, the SDEs do not."""

    def drift(self, x, t):
        prediction = self.field(x, t, self.cond)
        return prediction.velocity - self.eta(t).square() * prediction.score

    monkeypatch.setattr(ReverseSDE, "drift", drift)
    with pytest.raises(AssertionError, match=r"strength (0\.5|1) g"):
        marginals.check_marginals(Preserving())


class Lossy(Spec):
    """An option that JSON cannot give back."""

    model_config: ClassVar = {"arbitrary_types_allowed": True}
    size: object = 3 + 4j


def test_options_detector_fires():
    with pytest.raises(AssertionError, match="not equal"):
        processes.check_options(Lossy())
