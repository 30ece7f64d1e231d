"""Slots: what a row reads is still there, none more than needed, a ring where there is nothing to gain."""

from __future__ import annotations

import random

import pytest
import torch

from itoflow import NetworkField, Parametrization, Row
from itoflow.loop import run_table
from itoflow.slots import Slots, slots
from itoflow.table import Table
from itoflow.testing.memory import Peak, Scaled
from itoflow.testing.problems import Exploding, seeded


def multistep(k, n=12):
    return [Row(0.5, b=(0.1,) * min(i + 1, k)) for i in range(n)]


def sparse(seed, n=12, reach=7):
    """Rows that read what they like of the last few outputs, some with noise in the network's input."""
    draw = random.Random(seed)

    def weights(known):
        return tuple(draw.choice([0.0, 0.0, 0.0, 0.1, -0.2]) for _ in range(min(known, draw.randrange(reach))))

    noise = [draw.choice([0.0, 0.3]) for _ in range(n)]
    return [Row(0.95 - 0.07 * i, out="x0", a=0.8, p=0.9, q=weights(i), b=weights(i + 1), r=noise[i]) for i in range(n)]


def reads(rows):
    """(row, output, whether the row reads it after its own call), of every weight that is not zero."""
    for i, row in enumerate(rows):
        yield from ((i, i - j, False) for j, weight in enumerate(row.q, 1) if weight)
        yield from ((i, i - j, True) for j, weight in enumerate(row.b) if weight)


@pytest.mark.parametrize("seed", range(20))
def test_what_a_row_reads_has_not_been_overwritten(seed):
    rows = sparse(seed)
    held = slots(rows)
    places = held.places
    assert set(places) <= set(range(held.count))
    for i, output, after in reads(rows):
        filled = range(output + 1, i + 1 if after or rows[i].r else i)
        assert all(places[j] != places[output] for j in filled)


@pytest.mark.parametrize("seed", range(20))
def test_there_are_no_more_slots_than_outputs_alive_at_once(seed):
    rows = sparse(seed)
    needed = 0
    for i, row in enumerate(rows):
        later = {output for k, output, after in reads(rows) if output < i and (k > i or (k == i and (after or row.r)))}
        needed = max(needed, len(later) + 1)
    assert slots(rows).count == needed


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_multistep_method_has_a_ring(k):
    assert slots(multistep(k)) == Slots(tuple(i % k for i in range(12)), k)


def test_stages_give_their_slots_back():
    """Kutta's method of order 3 as two steps, then three-step rows over the first stages."""
    stages = [Row(0.5), Row(0.5, q=(0.5,)), Row(0.5, q=(2.0, -1.0), b=(0.1, 0.1, 0.1))]
    rows = [*stages, *stages, Row(0.5, b=(0.1, 0.0, 0.0, 0.1, 0.0, 0.0, 0.1)), *multistep(3)[3:]]
    assert Table(tuple(rows)).depth == 7
    assert slots(rows).count == 4


def test_an_output_that_only_the_next_input_reads_is_overwritten_unless_noise_is_there():
    rows = [Row(0.5), Row(0.5, q=(0.5,), b=(1.0,))]
    assert slots(rows).count == 1
    assert slots([rows[0], Row(0.5, q=(0.5,), r=0.1, b=(1.0,))]).count == 2


@pytest.mark.parametrize("seed", range(20))
def test_a_run_on_slots_equals_the_formula_and_holds_no_more(seed):
    """Equations (1) to (3) of `itoflow.table` with the whole history; memory counted by storage."""
    field = NetworkField(Scaled().double(), Exploding(), Parametrization(prediction="v", data_std=0.6))
    rows, x = sparse(seed), torch.randn(3, 200, generator=seeded(0)).double()
    generator, u, history = seeded(1), x, []
    for row in rows:
        z = torch.randn(x.shape, dtype=torch.float64, generator=generator) if row.r else torch.zeros_like(x)
        v = row.p * u + sum(q * h for q, h in zip(row.q, history, strict=False)) + row.r * z
        history = [field(v, torch.tensor(row.t, dtype=torch.float64)).x0, *history]
        u = row.a * u + sum(b * h for b, h in zip(row.b, history, strict=False))
    table = Table(tuple(rows))
    with Peak(x) as run:
        end = run_table(table, field, x, generator=seeded(1))
    torch.testing.assert_close(end, u, rtol=1e-10, atol=1e-10)
    assert run.peak <= slots(rows).count + 3
