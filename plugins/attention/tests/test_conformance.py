"""Every backend that this distribution registers passes the kit; `xformers` without a CUDA device by its reasons."""

from __future__ import annotations

import importlib

import pytest

from itoflow.testing import checks
from itoflow_attention import plugin

REGISTERED = {
    r.name: getattr(importlib.import_module(r.target.partition(":")[0]), r.target.partition(":")[2])
    for r in plugin.itoflow_attentions()
}


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("check", checks("attention"))
def test_kit(check, name):
    check(REGISTERED[name]())
