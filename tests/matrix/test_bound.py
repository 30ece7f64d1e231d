"""The bound of the reverse SDE: tight for a score that is exact, below it for one that is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest
import torch
from torch import Tensor

import itoflow
from itoflow import Field, GaussianProcess, IncompatibleError, InputError, OptionError
from itoflow.bound import likelihood_bound
from itoflow.likelihood import likelihood
from itoflow.prediction import Prediction
from itoflow.testing import GaussianOracle
from itoflow.testing.problems import Straight, UndeclaredOracle, gaussian, mixture, seeded


def processes() -> list[str]:
    return [n for n in itoflow.available("process") if isinstance(itoflow.create("process", n), GaussianProcess)]


@pytest.mark.parametrize("name", processes())
def test_it_is_tight_for_the_exact_score(name: str) -> None:
    """Mean over 400 points of bound less exact log p at t_min and prior mismatch: 4 standard errors, plus the cut at
    lambda = 20."""
    process = cast(GaussianProcess, itoflow.create("process", name))
    field = mixture(process)
    x = field.sample(400, generator=seeded(0))
    found = likelihood_bound(field, x, times=200, divergence="exact", generator=seeded(1)).log_prob
    exact = likelihood(field, x, rtol=1e-6)
    difference = found - exact.log_prob
    error = float(difference.std()) / 20
    print(f"\n{name}: {float(difference.mean()):+.1e} +- {error:.0e}")
    assert abs(float(difference.mean())) < 4 * error + 0.02
    assert error < 0.04


class Scaled(Field):
    """The exact field of N(0, I/4) data for a model that takes them for N(0, v I)."""

    def __init__(self, v: float) -> None:
        super().__init__(Straight())
        self.inner = GaussianOracle(Straight(), torch.zeros(2, dtype=torch.float64), v)

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Prediction:
        return self.inner(x, t, cond)


def test_a_score_of_another_law_gives_its_density_and_hutchinson_agrees() -> None:
    """A field that is exact for another law: the bound is that law's density, tight, at any point."""
    x = torch.randn(50, 2, generator=seeded(0), dtype=torch.float64)
    law = torch.distributions.Normal(0.0, 0.8)
    exact = law.log_prob(x).sum(1)
    for options in ({"divergence": "exact"}, {"divergence": "hutchinson", "probes": 2}):
        found = likelihood_bound(Scaled(0.64), x, times=2000, generator=seeded(1), **options)  # type: ignore[arg-type]
        difference = found.log_prob - exact
        assert abs(float(difference.mean())) < 4 * float(difference.std()) / 50**0.5 + 5e-3


class Curl(Field):
    """The Gaussian's field with its score turned by a rotation of size c: no score of any law, though of the same ODE
    density, as a rotation keeps N(0, v I)."""

    def __init__(self, c: float) -> None:
        super().__init__(Straight())
        self.inner = GaussianOracle(Straight(), torch.zeros(2, dtype=torch.float64), 0.25)
        self.c = c

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor] | None = None) -> Prediction:
        exact = self.inner(x, t, cond)
        turned = torch.stack([-x[:, 1], x[:, 0]], dim=1)

        class Turned:
            velocity = exact.velocity + self.c * turned

        return Turned()  # type: ignore[return-value]


def test_a_field_that_is_no_gradient_keeps_its_density_and_loosens_the_bound() -> None:
    x = 0.5 * torch.randn(200, 2, generator=seeded(0), dtype=torch.float64)
    exact = torch.distributions.Normal(0.0, 0.5).log_prob(x).sum(1)
    torch.testing.assert_close(likelihood(Curl(0.5), x, rtol=1e-8).log_prob, exact, rtol=0, atol=1e-6)
    gaps = []
    for c in (0.0, 0.25, 0.5):
        difference = exact - likelihood_bound(Curl(c), x, times=500, divergence="exact", generator=seeded(1)).log_prob
        gaps.append(float(difference.mean()))
    print(f"\ngaps {gaps}")
    assert gaps[0] < 0.02
    assert gaps[1] > gaps[0] + 0.02
    assert 3.4 < (gaps[2] - gaps[0]) / (gaps[1] - gaps[0]) < 4.6  # quadratic in c


def test_what_it_refuses() -> None:
    field = mixture(Straight())
    with pytest.raises(InputError, match=r"times must be .* at least 2. Given: 1"):
        likelihood_bound(field, torch.zeros(1, 2), times=1)
    with pytest.raises(InputError, match="empty"):
        likelihood_bound(field, torch.zeros(0, 2))
    with pytest.raises(OptionError, match="divergence is one of exact, hutchinson"):
        likelihood_bound(field, torch.zeros(1, 2), divergence="sliced")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows must be a whole number"):
        likelihood_bound(field, torch.zeros(1, 2), rows=0)
    with pytest.raises(IncompatibleError, match="draws from a GaussianProcess"):
        likelihood_bound(UndeclaredOracle(gaussian(Straight())), torch.zeros(1, 2))
