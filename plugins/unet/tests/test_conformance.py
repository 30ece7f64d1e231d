"""Every backbone that this distribution registers passes the kit."""

from __future__ import annotations

import importlib

import pytest

from itoflow.testing import checks
from itoflow_unet import plugin

REGISTERED = {
    r.name: getattr(importlib.import_module(r.target.partition(":")[0]), r.target.partition(":")[2])
    for r in plugin.itoflow_backbones()
}


@pytest.mark.parametrize("name", [name for name in REGISTERED if name != "unet-diffusers"])
@pytest.mark.parametrize("check", checks("backbone"))
def test_small(check, name):
    heads = {"head_size": 8} if name == "unet-adm" else {}
    check(REGISTERED[name](channels=8, multipliers=(1, 2), blocks=1, attention=(4, 8), **heads))
