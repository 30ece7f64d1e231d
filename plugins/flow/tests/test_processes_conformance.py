"""Every process that this distribution registers passes the kit, at its defaults and away from them."""

from __future__ import annotations

import importlib

import pytest

from itoflow.testing import checks
from itoflow_flow import plugin

REGISTERED = {
    r.name: getattr(importlib.import_module(r.target.partition(":")[0]), r.target.partition(":")[2])
    for r in plugin.itoflow_processes()
}
VARIANTS = {
    "linear": {"sigma_min": 0.01, "t_max": 0.999},
    "trigonometric": {"t_min": 1e-3, "t_max": 0.999},
    "polynomial": {"power": 3.0, "t_max": 0.95},
    "sb": {"sigma": 0.3},
    "interpolant": {"sigma": 0.0},
}


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("check", checks("process"))
def test_defaults(check, name):
    check(REGISTERED[name]())


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("check", checks("process"))
def test_other_options(check, name):
    check(REGISTERED[name](**VARIANTS[name]))
