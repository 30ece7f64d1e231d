"""The film of a run: a frame for each state, none where a call moves nothing."""

from __future__ import annotations

from types import SimpleNamespace

from itoflow import DataSpec, Row, Table
from itoflow.loop import run_table
from itoflow.testing.problems import Preserving, gaussian, seeded
from itoflow_train.pictures import Film


def test_an_inner_stage_gives_no_frame():
    data = DataSpec(shape=(2,))
    values, model = SimpleNamespace(data=data, leave=lambda x: x), SimpleNamespace(process=Preserving(), data=data)
    film, field = Film(model, values, frames=10), gaussian(Preserving())
    stage, step = Row(0.9), Row(0.8, b=(-0.1,))
    run_table(Table((step, stage, step, stage, stage)), field, field.sample(3, 1.0, generator=seeded(0)), callback=film)
    assert len(film.pictures) == 2
