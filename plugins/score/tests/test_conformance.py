"""Every objective that this distribution registers passes the kit, with every option that changes its mathematics."""

from __future__ import annotations

import importlib
from typing import get_args

import pytest

from itoflow.parametrization import PredictionName
from itoflow.testing import checks
from itoflow.testing.objectives import check_minimiser
from itoflow_score import plugin
from itoflow_score.denoising import DenoisingScoreMatching
from itoflow_score.times import TimesName
from itoflow_score.weightings import WeightingName

REGISTERED = {
    r.name: getattr(importlib.import_module(r.target.partition(":")[0]), r.target.partition(":")[2])
    for r in plugin.itoflow_objectives()
}


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("check", checks("objective"))
def test_defaults(check, name):
    check(REGISTERED[name]())


@pytest.mark.parametrize(
    "options",
    [
        *({"weighting": weighting, "prediction": "v"} for weighting in get_args(WeightingName)),
        *({"times": times, "prediction": "v"} for times in get_args(TimesName)),
        *({"prediction": prediction} for prediction in get_args(PredictionName)),
    ],
    ids=str,
)
def test_the_exact_field_is_the_minimum_for_every_option(options):
    check_minimiser(DenoisingScoreMatching(**options))
