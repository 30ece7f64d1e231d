"""Every sampler that this distribution registers passes the kit."""

from __future__ import annotations

import importlib

import pytest

from itoflow.testing import checks
from itoflow.testing.samplers import check_batch_split
from itoflow_ode import plugin

REGISTERED = {
    r.name: getattr(importlib.import_module(r.target.partition(":")[0]), r.target.partition(":")[2])
    for r in plugin.itoflow_samplers()
}


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("check", [check for check in checks("sampler") if check is not check_batch_split])
def test_defaults(check, name):
    check(REGISTERED[name]())


@pytest.mark.parametrize("name", REGISTERED)
def test_batch_split_at_a_tight_tolerance(name):
    """Steps are shared by a batch, so a sample depends on its batch as far as the tolerance allows, and no further."""
    check_batch_split(REGISTERED[name](rtol=1e-12, atol=1e-12))


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.xfail(reason="the steps of a batch are those of its worst example", strict=True, raises=AssertionError)
def test_batch_split_at_the_default_tolerance(name):
    check_batch_split(REGISTERED[name]())
