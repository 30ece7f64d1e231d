"""Every process that this distribution registers passes the kit, at its defaults and away from them."""

from __future__ import annotations

import importlib

import pytest

from itoflow.testing import checks
from itoflow_sde import plugin

REGISTERED = {
    r.name: getattr(importlib.import_module(r.target.partition(":")[0]), r.target.partition(":")[2])
    for r in plugin.itoflow_processes()
}
VARIANTS = {
    "vp": {"beta_min": 0.5, "beta_max": 12.0, "t_min": 0.0},
    "subvp": {"beta_min": 0.5, "beta_max": 12.0, "t_min": 0.0},
    "ve": {"sigma_min": 0.1, "sigma_max": 20.0},
    "cosine": {"s": 0.02, "t_min": 1e-5},
    "edm": {"sigma_max": 20.0, "t_min": 1e-4},
}


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("check", checks("process"))
def test_defaults(check, name):
    check(REGISTERED[name]())


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("check", checks("process"))
def test_other_options(check, name):
    check(REGISTERED[name](**VARIANTS[name]))
