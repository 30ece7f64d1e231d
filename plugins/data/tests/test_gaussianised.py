"""The map is invertible, its log-determinant is that of its Jacobian, and densities keep their mass."""

from __future__ import annotations

import math

import pytest
import torch

from itoflow import DataSpec, InputError
from itoflow.likelihood import dequantise, level_width
from itoflow_data import load_dataset
from itoflow_data.gaussianised import MarginalGaussianisation

DIGITS = {"name": "gaussianised", "source": "digits"}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def fitted(levels=5, size=3, n=50):
    spec = DataSpec(shape=(size,), levels=levels, low=-1.0, high=1.0)
    x = torch.randint(0, levels, (n, size), generator=seeded(0)) * level_width(spec) + spec.low
    return MarginalGaussianisation(x, spec), dequantise(x.double(), spec, seeded(1)), spec


def test_inverse():
    found, x, _ = fitted()
    torch.testing.assert_close(found.inverse(found.forward(x)), x, rtol=0, atol=1e-12)
    z = torch.randn(50, 3, generator=seeded(2), dtype=torch.float64)
    torch.testing.assert_close(found.forward(found.inverse(z)), z, rtol=0, atol=1e-10)


def test_log_det_is_that_of_the_jacobian():
    found, x, _ = fitted()
    jacobians = [torch.autograd.functional.jacobian(lambda y: found.forward(y[None])[0], row) for row in x]
    expected = torch.stack([torch.linalg.slogdet(j).logabsdet for j in jacobians])
    torch.testing.assert_close(found.log_det(x), expected, rtol=0, atol=1e-10)


def test_total_mass_of_a_density_in_z():
    """N(0.3, 0.7^2) of z, as a density of x over all cells, by the midpoint rule cell by cell: 1 within 1e-4."""
    found, _, spec = fitted(levels=4, size=1, n=30)
    points = 20_000
    width = level_width(spec)
    x = spec.low - width / 2 + (torch.arange(4 * points, dtype=torch.float64) + 0.5) * width / points
    law = torch.distributions.Normal(torch.tensor(0.3, dtype=torch.float64), 0.7)
    density = (law.log_prob(found.forward(x[:, None])).sum(1) + found.log_det(x[:, None])).exp()
    assert float(density.sum() * width / points) == pytest.approx(1, abs=1e-4)


def test_standard_normal_z_is_the_histogram():
    """log p(x) = sum_i log p_i(k) - log w, constant in a cell, and its frequencies add up to 1."""
    found, x, spec = fitted()
    log_prob = (-found.forward(x).square() / 2 - math.log(2 * math.pi) / 2).sum(1) + found.log_det(x)
    k = ((x - spec.low) / level_width(spec)).round().long()
    expected = found.mass.gather(0, k).log().sum(1) - 3 * math.log(level_width(spec))
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.mass.sum(0), torch.ones(3, dtype=torch.float64))
    assert float(found.mass.min()) > 0


def test_digits_have_standard_normal_marginals():
    """Over 1437 examples, mean and variance of each pixel within 5 standard errors, and the same at each loading."""
    source = load_dataset(DIGITS)
    examples = source.load("train")
    examples.check(source.spec)
    assert torch.equal(examples.x, source.load("train").x)
    z = examples.x.flatten(1).double()
    assert float(z.mean(0).abs().max()) < 5 / len(z) ** 0.5
    assert float((z.var(0) - 1).abs().max()) < 5 * (2 / len(z)) ** 0.5
    assert source.spec.levels is None


def test_what_lies_outside_the_cells_stays_finite():
    found = fitted()[0]
    far = torch.tensor([[-50.0, 50.0, 0.0]], dtype=torch.float64)
    assert float(found.forward(far).abs().max()) < 7.2
    assert bool(torch.isfinite(found.inverse(torch.full_like(far, 1e6))).all())


def test_continuous_data_are_refused():
    with pytest.raises(InputError, match="Gaussianised is for data with levels; TwoMoons has none"):
        _ = load_dataset({"name": "gaussianised", "source": "two-moons"}).spec
