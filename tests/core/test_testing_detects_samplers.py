"""Every detector of samplers fires on one that is broken in one way, and says what is wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from itoflow import (
    NumericalError,
    ProcessSpec,
    Row,
    Table,
    TableSampler,
)
from itoflow.testing import samplers
from itoflow.testing.variants import variant


class Walk(TableSampler):
    """Euler, right as it stands."""

    order: ClassVar[int] = 1

    def table(self, process: ProcessSpec) -> Table:
        times, ending = self.times(process)
        return Table((*(Row(t, b=(s - t,)) for t, s in pairwise(times)), *ending))


def run(self, field, x, cond=None, *, generator=None, callback=None):
    return Walk.__call__(self, field, x, cond, generator=generator, callback=callback)


def changed(change):
    """Euler with its arguments or its result changed."""

    def call(self, field, x, cond=None, *, generator=None, callback=None):
        return change(self, field, x, cond, generator, callback)

    return variant(Walk, __call__=call)


def half_noise(self, process):
    """Euler-Maruyama with the drift of the reverse SDE but sqrt(2) less noise."""
    times, ending = self.times(process)
    rows = []
    for t, s in pairwise(times):
        g = float(process.diffusion(torch.tensor(t, dtype=torch.float64)))
        g = min(g, 3.0)
        rows.append(Row(t, b=(s - t,), c=g * ((t - s) / 2) ** 0.5, eta=g))
    return Table((*rows, *ending))


def in_place(self, field, x, cond, generator, callback):
    x *= 1.0 + 1e-3
    return run(self, field, x, cond, generator=generator, callback=callback)


def swallow(self, field, x, cond, generator, callback):
    try:
        return run(self, field, x, cond, generator=generator, callback=callback)
    except NumericalError:
        return torch.zeros_like(x)


SAMPLERS = [
    ("check_gaussian", variant(Walk, table=half_noise), "covariance"),
    ("check_gaussian", changed(lambda s, f, x, c, g, b: run(s, f, x) + 0.1), "mean"),
    ("check_mixture", changed(lambda s, f, x, c, g, b: 0.9 * run(s, f, x.abs())), "mixture"),
    ("check_order", variant(Walk, order=2), "declares order 2"),
    ("check_randomness", changed(in_place), "in place"),
    ("check_randomness", changed(lambda s, f, x, c, g, b: run(s, f, x + torch.randn_like(x))), "default generator"),
    ("check_randomness", changed(lambda s, f, x, c, g, b: run(s, f, x.double())), "float64"),
    ("check_randomness", changed(lambda s, f, x, c, g, b: x.numpy()), "returned a ndarray"),
    ("check_batch_split", changed(lambda s, f, x, c, g, b: run(s, f, x - x.mean(0))), "smaller batch"),
    ("check_shape", changed(lambda s, f, x, c, g, b: run(s, f, x * x.shape[-1])), "of shape"),
    ("check_callback", changed(lambda s, f, x, c, g, b: run(s, f, x, c)), "called its callback 0 times"),
    ("check_callback", changed(lambda s, f, x, c, g, b: run(s, f, x, callback=b)), "conditions"),
    ("check_callback", changed(lambda s, f, x, c, g, b: 1.01 * run(s, f, x, c, callback=b)), "not what it returned"),
    (
        "check_single_step",
        changed(lambda s, f, x, c, g, b: run(s, f, x) / (s.steps - 1) if s.steps > 1 else x * torch.nan),
        "one step",
    ),
    ("check_failure", changed(swallow), "returned although"),
]


@pytest.mark.parametrize("check", [c for c in samplers.CHECKS if c.__name__ != "check_options"])
def test_sampler_that_is_right_passes(check):
    check(Walk())


@pytest.mark.parametrize(("check", "broken", "says"), SAMPLERS)
def test_sampler_detector_fires(check, broken, says):
    with pytest.raises(AssertionError, match=says):
        getattr(samplers, check)(broken)


def test_every_sampler_check_has_a_case_that_fires():
    assert {check for check, _, _ in SAMPLERS} == {c.__name__ for c in samplers.CHECKS} - {"check_options"}


def test_sampler_that_fits_no_process_is_not_passed_silently():
    class Nowhere(ProcessSpec):
        """Nobody derives from this."""

    with pytest.raises(AssertionError, match="no installed process"):
        samplers.check_single_step(variant(Walk, requires=Nowhere))
