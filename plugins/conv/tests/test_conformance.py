"""Every backbone that this distribution registers passes the kit."""

from __future__ import annotations

import importlib

import pytest

from itoflow.testing import checks
from itoflow_conv import plugin

REGISTERED = {
    r.name: getattr(importlib.import_module(r.target.partition(":")[0]), r.target.partition(":")[2])
    for r in plugin.itoflow_backbones()
}


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("check", checks("backbone"))
def test_small(check, name):
    check(REGISTERED[name](width=8, inner_width=8, depth=1, dense=8, frequencies=8, embedding=16, groups=4))
