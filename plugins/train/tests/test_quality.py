"""The measures, against closed forms and against cases in which they must speak up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from itoflow import DataSpec
from itoflow_data import Examples, load_dataset
from itoflow_train.ema import moving_average
from itoflow_train.quality import Judge, Quality, _mixture_sets, at_levels, energy_distance, nearest
from itoflow_train.recipe import read
from itoflow_train.report import table


def test_energy_distance_of_two_points():
    x, y = torch.zeros(3, 1, 2), torch.full((5, 1, 2), 1.0)
    assert energy_distance(x, y) == pytest.approx(2 * math.sqrt(2))
    assert energy_distance(y, y) == 0


def test_energy_distance_of_gaussians_matches_its_closed_form():
    """1-D normals m apart: E = 2 E|N(m, 2)| - 2 E|N(0, 2)|; within 4 standard errors, false alarm 1e-4."""
    generator, m, n = torch.Generator().manual_seed(0), 1.5, 4000
    x, y = torch.randn(n, 1, generator=generator), torch.randn(n, 1, generator=generator) + m
    folded = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    exact = 2 * folded - 4 / math.sqrt(math.pi)
    draws = [energy_distance(x[i::8], y[i::8]) for i in range(8)]
    bias = 2 * (2 / math.sqrt(math.pi)) / (n / 8)  # of the V-statistic, from the zero distances of i = j
    error = torch.tensor(draws).std().item() / math.sqrt(8)
    print(f"exact {exact:.4f}, mean {sum(draws) / 8 - bias:.4f}, standard error {error:.4f}")
    assert abs(sum(draws) / 8 - bias - exact) < 4 * error


def test_levels():
    data = DataSpec(shape=(1,), levels=3)
    x = torch.tensor([[-1.4], [-0.6], [0.2], [0.9], [3.0]])
    assert at_levels(x, data).flatten().tolist() == [-1, -1, 0, 1, 1]
    assert at_levels(x, DataSpec(shape=(1,))) is x


def test_nearest_finds_copies():
    train = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    assert nearest(train[:10], train).max() < 1e-6
    assert nearest(train[:10] + 3, train).min() > 1


def test_nearest_of_many_is_that_of_each():
    x, y = (torch.randn(n, 2, generator=torch.Generator().manual_seed(n)) for n in (600, 40))
    torch.testing.assert_close(nearest(x, y), torch.cdist(x.double(), y.double()).amin(1))


def test_the_baselines_of_small_data_are_those_of_large():
    """The unit is a power of 2, so that nothing is rounded otherwise."""
    unit, x = 2.0**-14, torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    large, small = (torch.cat(_mixture_sets(Examples(scale * x, {}), 200, 2, 3)) for scale in (1.0, unit))
    torch.testing.assert_close(small / unit, large, rtol=1e-6, atol=1e-6)


def test_the_table_leaves_out_what_was_not_measured(recipe):
    figures = {"size": 50, "floor": 0.1, "energy": 1.5, "copying": 1.0, "evaluations": 9, "samples_per_second": 3.0}
    training = {"parameters": 1, "seconds": 1.0, "loss": 0.5}
    without = table("toy", read(recipe), training, Quality(**figures))
    assert "this model" in without
    assert "Gaussian" not in without
    assert "mixture of 10 Gaussians          2.30" in table(
        "toy", read(recipe), training, Quality(**figures, gaussian=3.4, mixture=2.3)
    )


def test_judge_knows_digits():
    digits = load_dataset({"name": "digits", "labels": True})
    train, test = digits.load("train"), digits.load("test")
    judge = Judge(train, test)
    assert judge.accuracy >= 0.985
    shuffled = (judge(test.x) == test.cond["class"].roll(1)).double().mean()
    assert shuffled < 0.3  # it does not agree with everything


def test_moving_average():
    net = nn.Linear(1, 1, bias=False)
    average, decay = moving_average(net, 0.9), 0.9
    expected = net.weight.item()
    for n in range(40):
        nn.init.constant_(net.weight, float(n))
        average.update_parameters(net)
        if n == 0:
            expected = 0.0  # the first update copies
        else:
            d = min(decay, (1 + n) / (10 + n))
            expected = d * expected + (1 - d) * n
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
