"""Every backbone that this distribution registers passes the kit, and so does every option."""

from __future__ import annotations

import importlib

import pytest

from itoflow.testing import checks
from itoflow_dit import plugin

REGISTERED = {
    r.name: getattr(importlib.import_module(r.target.partition(":")[0]), r.target.partition(":")[2])
    for r in plugin.itoflow_backbones()
}
SMALL = {"width": 16, "depth": 2, "heads": 2, "frequencies": 8}
OPTIONS = {
    "rotary": {"positions": "rotary"},
    "norm_queries": {"norm_queries": True, "positions": "rotary", "patch": 4},
    "dropout": {"dropout": 0.2, "expansion": 0.5, "patch": 1},
}


@pytest.mark.parametrize("check", checks("backbone"))
@pytest.mark.parametrize("name", REGISTERED)
def test_small(name, check):
    if name == "dit" or check.__name__ in ("check_options", "check_output"):  # presets differ by their defaults only
        check(REGISTERED[name](**SMALL))


@pytest.mark.parametrize("check", checks("backbone"))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, check):
    check(REGISTERED["dit"](**SMALL, **options))
