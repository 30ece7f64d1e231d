"""Every sampler that this distribution registers passes the kit, and so do the options that change its law."""

from __future__ import annotations

import importlib

import pytest

from itoflow.testing import checks
from itoflow.testing.samplers import check_batch_split, check_callback, check_gaussian, check_single_step
from itoflow_samplers import plugin
from itoflow_samplers.ddim import DDIM, Ancestral
from itoflow_samplers.predictor_corrector import PredictorCorrector
from itoflow_samplers.sde import EulerMaruyama, ReverseDiffusion

REGISTERED = {
    r.name: getattr(importlib.import_module(r.target.partition(":")[0]), r.target.partition(":")[2])
    for r in plugin.itoflow_samplers()
}
VARIANTS = [
    DDIM(eta=0.5),
    DDIM(eta=1.0, grid="log-snr"),
    Ancestral(variance="forward"),
    EulerMaruyama(strength=0.0),
    EulerMaruyama(strength=0.5, denoise=False),
    ReverseDiffusion(grid="karras"),
    PredictorCorrector(predictor=Ancestral(), corrector_steps=2),
    PredictorCorrector(predictor=EulerMaruyama(), snr=0.1),
    PredictorCorrector(corrector_steps=0),
]


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("check", checks("sampler"))
def test_defaults(check, name):
    check(REGISTERED[name]())


@pytest.mark.parametrize("sampler", VARIANTS, ids=repr)
@pytest.mark.parametrize("check", [check_gaussian, check_batch_split, check_callback, check_single_step])
def test_options(check, sampler):
    check(sampler)
