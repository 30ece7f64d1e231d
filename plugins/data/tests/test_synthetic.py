from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from itoflow import InputError, OptionError
from itoflow_data import load_dataset
from itoflow_data.checkerboard import Checkerboard
from itoflow_data.eight_gaussians import EightGaussians
from itoflow_data.gaussian_mixture import GaussianMixture
from itoflow_data.swiss_roll import SwissRoll
from itoflow_data.synthetic import Standardised, Synthetic
from itoflow_data.two_moons import TwoMoons

SHAPES = [TwoMoons, EightGaussians, Checkerboard, SwissRoll]
N = 200_000
UNEVEN = GaussianMixture(
    means=((0.0, 1.0), (2.0, -1.0), (-1.0, -1.0)), stds=(0.3, 0.2, 0.5), weights=(1.0, 2.0, 5.0), n_train=N
)


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> type[Standardised]:
    cls: type[Standardised] = request.param
    return cls


@pytest.mark.parametrize("options", [{}, {"scale": 3.0}, {"noise": 0.4}, {"noise": 1e-6, "scale": 0.5}])
def test_moments_are_those_declared(shape: type[Standardised], options: dict[str, float]) -> None:
    """A mean is off by std / sqrt(N) = 0.0022 std, so 0.012 is five deviations; a fourth moment is at most 3."""
    source = shape(n_train=N, **options)
    x = source.load("train").x.double()
    std = source.spec.std
    assert std == source.scale
    assert x.mean(0).abs().max() < 0.012 * std
    assert float(x.square().mean()) == pytest.approx(std**2, rel=0.012)


def test_bounds_are_tight_without_noise(shape: type[Standardised]) -> None:
    """The farthest point of the shape reaches a bound."""
    source = shape(n_train=N, noise=1e-6)
    x = source.load("train").x
    assert float(x.abs().max()) == pytest.approx(source.spec.high, rel=2e-3)
    assert source.spec.low == -source.spec.high


@pytest.mark.parametrize("cls", [*SHAPES, GaussianMixture])
def test_options_of_the_draw(cls: type[Synthetic]) -> None:
    one = cls(n_train=50, n_test=20).load("train").x
    assert one.shape == (50, 2)
    assert torch.equal(one, cls(n_train=50, n_test=30).load("train").x)
    assert not torch.equal(one, cls(n_train=50, n_test=20, seed=1).load("train").x)
    assert torch.allclose(2 * one, cls(n_train=50, scale=2.0).load("train").x)


@pytest.mark.parametrize("cls", [*SHAPES, GaussianMixture])
@pytest.mark.parametrize("wrong", [{"n_train": 0}, {"n_test": 0}, {"scale": 0.0}, {"scale": math.inf}, {"seed": -1}])
def test_options_are_checked(cls: type[Synthetic], wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        cls(**wrong)


@pytest.mark.parametrize(("cls", "noise"), [(TwoMoons, -1.0), (EightGaussians, 0.0), (SwissRoll, math.nan)])
def test_noise_is_checked(cls: type[Standardised], noise: float) -> None:
    with pytest.raises(OptionError, match="noise"):
        cls(noise=noise)


def test_two_moons_lie_on_their_circles() -> None:
    source = TwoMoons(noise=0.0, labels=True, n_train=2000)
    train = source.load("train")
    p = train.x.double() / source.factor + torch.tensor(source.mean)
    lower = train.cond["class"] == 1
    assert torch.allclose(p[~lower].norm(dim=1), torch.ones(1, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(
        (p[lower] - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(1, dtype=torch.float64), atol=1e-6
    )
    assert p[~lower, 1].min() > -1e-6
    assert p[lower, 1].max() < 0.5 + 1e-6
    assert 900 < int(lower.sum()) < 1100


def test_checkerboard_fills_dark_squares_evenly() -> None:
    source = Checkerboard(n_train=80_000)
    cell = (source.load("train").x.double() / source.factor + 2).floor().long().clamp(0, 3)
    count = torch.bincount(4 * cell[:, 0] + cell[:, 1], minlength=16).view(4, 4)
    dark = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    assert count[~dark].sum() < 10  # rounding at an edge
    assert (count[dark] - 10_000).abs().max() < 5 * math.sqrt(10_000)


def test_swiss_roll_is_a_spiral() -> None:
    source = SwissRoll(noise=0.0, n_train=2000)
    p = source.load("train").x.double() / source.factor + torch.tensor(source.mean)
    radius, angle = p.norm(dim=1), torch.atan2(p[:, 1], p[:, 0])
    turns = (radius - angle) / (2 * math.pi)
    assert (turns - turns.round()).abs().max() < 1e-5
    assert 1.5 * math.pi - 1e-5 < radius.min() < radius.max() < 4.5 * math.pi + 1e-5


def test_labels_name_the_gaussian() -> None:
    source = EightGaussians(labels=True, noise=0.01, n_train=1000)
    train = source.load("train")
    angle = torch.atan2(train.x[:, 1], train.x[:, 0])
    assert torch.equal((angle / (math.pi / 4)).round().long() % 8, train.cond["class"])
    assert source.spec.classes == 8
    train.check(source.spec)


@pytest.mark.parametrize("cls", [TwoMoons, EightGaussians, GaussianMixture])
def test_labels_do_not_change_the_examples(cls: type[Synthetic]) -> None:
    plain, labelled = cls(n_train=20).load("train"), cls(n_train=20, labels=True).load("train")  # type: ignore[call-arg]
    assert torch.equal(plain.x, labelled.x)
    assert not plain.cond


@pytest.mark.parametrize(
    "source",
    [GaussianMixture(n_train=N), UNEVEN, EightGaussians(n_train=N), EightGaussians(n_train=N, scale=2.0, noise=0.3)],
)
def test_density_is_that_of_the_examples(source: GaussianMixture | EightGaussians) -> None:
    """It integrates to 1, and each cell of a histogram has its probability, within five deviations."""
    low, high, fine, coarse = source.spec.low, source.spec.high, 480, 24
    axis = torch.linspace(low, high, fine + 1, dtype=torch.float64)
    middle = (axis[1:] + axis[:-1]) / 2
    points = torch.cartesian_prod(middle, middle)
    density = source.log_prob(points)
    mass = density.exp() * ((high - low) / fine) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=1e-6)

    cells = mass.view(coarse, fine // coarse, coarse, fine // coarse).sum((1, 3)).numpy()
    x = source.load("train").x.numpy()
    edges = np.linspace(low, high, coarse + 1)
    count = np.histogram2d(x[:, 0], x[:, 1], bins=(edges, edges))[0]
    assert np.all(np.abs(count - N * cells) < 5 * np.sqrt(N * cells) + 5)
    assert count.sum() == N

    log_prob = source.log_prob(torch.from_numpy(x).double())
    expected = float((mass * density).sum())
    assert float(log_prob.mean()) == pytest.approx(expected, abs=5 * float(log_prob.std()) / math.sqrt(N))


def test_density_against_torch() -> None:
    parts = UNEVEN.components
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(parts.weights),
        torch.distributions.Independent(torch.distributions.Normal(parts.means, parts.stds[:, None].expand(-1, 2)), 1),
    )
    x = 3 * torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(UNEVEN.log_prob(x), mixture.log_prob(x), rtol=1e-12)


def test_density_keeps_dtype_and_has_a_gradient() -> None:
    x = torch.tensor([[0.5, -0.5]], requires_grad=True)
    source = GaussianMixture(means=((0.0, 0.0),), stds=(2.0,))
    log_prob = source.log_prob(x)
    assert log_prob.dtype == torch.float32
    (score,) = torch.autograd.grad(log_prob.sum(), x)
    assert torch.allclose(score, -x / 4)


def test_mixture_moments() -> None:
    x = UNEVEN.load("train").x.double()
    assert float(x.std()) == pytest.approx(UNEVEN.spec.std, rel=0.01)
    assert GaussianMixture().spec.std == pytest.approx(1, abs=1e-12)
    scaled = UNEVEN.replace(scale=3.0)
    assert scaled.spec.std == pytest.approx(3 * UNEVEN.spec.std)


def test_mixture_in_other_dimensions() -> None:
    source = GaussianMixture(means=((0.0,), (2.0,)), stds=(0.5,), labels=True, n_train=10)
    assert source.spec.shape == (1,)
    source.load("train").check(source.spec)
    grid = torch.linspace(-4, 6, 10_001, dtype=torch.float64)
    assert float(torch.trapezoid(source.log_prob(grid[:, None]).exp(), grid)) == pytest.approx(1, abs=1e-9)


def test_mixture_round_trip() -> None:
    assert load_dataset(UNEVEN.to_dict()) == UNEVEN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"means": ()}, "means"),
        ({"means": ((),)}, "means"),
        ({"means": ((0.0, 1.0), (2.0,))}, "different sizes"),
        ({"means": ((math.nan,),)}, "means"),
        ({"stds": (0.1, 0.2)}, "2 stds for 8 means"),
        ({"stds": (0.0,)}, "stds"),
        ({"weights": (1.0, 1.0)}, "2 weights for 8 means"),
        ({"weights": (0.0,) * 8}, "weights"),
        ({"means": ((0.0,),), "labels": True}, "two components"),
    ],
)
def test_mixture_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GaussianMixture(**options)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.zeros(3, 1), torch.zeros(3, 2, dtype=torch.int64)])
def test_density_refuses(x: torch.Tensor) -> None:
    for source in (GaussianMixture(), EightGaussians()):
        with pytest.raises(InputError, match=r"\(N, 2\)"):
            source.log_prob(x)
