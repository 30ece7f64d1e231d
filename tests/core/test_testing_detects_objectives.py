"""Every detector of objectives fires on one that is broken in one way, and says what is wrong."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from itoflow import (
    Objective,
    Parametrization,
)
from itoflow.testing import objectives
from itoflow.testing.problems import Preserving
from itoflow.testing.variants import variant


class Regress(Objective):
    """Denoising in x0, right as it stands; each subclass breaks one thing."""

    shrink: ClassVar[float] = 1.0
    prediction: str = "x0"

    def parametrization(self, process, data):
        return Parametrization(prediction=self.prediction, data_std=data.std)

    def __call__(self, field, x0, cond=None, *, generator=None):
        t = self.times(field, x0, generator)
        sample = field.process.perturb(x0, t, generator=generator)
        prediction = field(sample.x, t, self.condition(cond))
        estimate = prediction.x0 if sample.eps is not None else prediction.score
        target = self.shrink * x0 if sample.eps is not None else self.score(sample)
        return self.reduce((estimate - target).square().flatten(1).mean(1), prediction)

    def times(self, field, x0, generator):
        unit = torch.rand(len(x0), generator=generator, dtype=torch.float64)
        return field.process.t_min + (field.process.t_max - field.process.t_min) * unit.clamp(min=1e-3)

    def score(self, sample):
        k = Preserving().kernel(sample.t, sample.x.ndim)
        return (-(sample.x - k.alpha * sample.x0) / k.sigma**2).to(sample.x.dtype)

    def condition(self, cond):
        return cond

    def reduce(self, loss, prediction):
        return loss


OBJECTIVES = [
    ("check_minimiser", variant(Regress, shrink=0.9), "no minimum"),
    ("check_minimiser", variant(Regress, reduce=lambda self, loss, p: 0 * loss), "does not see"),
    ("check_minimiser", variant(Regress, reduce=lambda self, loss, p: loss.detach()), "does not depend"),
    ("check_loss", variant(Regress, reduce=lambda self, loss, p: loss.mean()), "one each"),
    ("check_loss", variant(Regress, reduce=lambda self, loss, p: None), "returned a NoneType"),
    ("check_loss", variant(Regress, parametrization=lambda self, process, data: "v"), "no itoflow.Parametrization"),
    ("check_loss", variant(Regress, reduce=lambda self, loss, p: loss.double()), "float64 loss"),
    (
        "check_loss",
        variant(Regress, times=lambda self, field, x0, generator: torch.rand(len(x0), dtype=torch.float64)),
        "default generator",
    ),
    ("check_loss", variant(Regress, reduce=lambda self, loss, p: 0 * loss), "ignores its generator"),
    ("check_conditions", variant(Regress, condition=lambda self, cond: None), "pass `cond` on"),
    (
        "check_conditions",
        variant(Regress, condition=lambda self, cond: {name: value.flip(0) for name, value in cond.items()}),
        "rows in the order of x",
    ),
    ("check_training", variant(Regress, reduce=lambda self, loss, p: (loss - loss).sqrt()), "gradient"),
    (
        "check_prediction_independence",
        variant(Regress, reduce=lambda self, loss, p: loss * (1 + p.a.flatten().abs()) if hasattr(p, "a") else loss),
        "with prediction",
    ),
]


@pytest.mark.parametrize("check", [c for c in objectives.CHECKS if c.__name__ != "check_options"])
def test_objective_that_is_right_passes(check):
    check(Regress())


@pytest.mark.parametrize(("check", "broken", "says"), OBJECTIVES)
def test_objective_detector_fires(check, broken, says):
    with pytest.raises(AssertionError, match=says):
        getattr(objectives, check)(broken)


def test_every_objective_check_has_a_case_that_fires():
    assert {check for check, _, _ in OBJECTIVES} == {c.__name__ for c in objectives.CHECKS} - {"check_options"}
