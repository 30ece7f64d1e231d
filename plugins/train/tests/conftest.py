"""A plugin of toy components, and a recipe that uses nothing else but the digits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from itoflow import registry

RECIPE = """
summary: toy
data: {name: digits}
process: toy-process
objective: toy-objective
backbone: {name: toy-backbone, width: 16}
sampler: {name: toy-sampler, steps: 4}
training: {steps: 30, log_every: 10, checkpoint_every: 20}
report: {samples: 50, sets: 2, floor_draws: 5}
"""


@pytest.fixture(autouse=True, scope="session")
def toy_plugin():
    sys.path.insert(0, str(Path(__file__).parent / "toy"))
    registry.reset()
    yield
    sys.path.pop(0)
    registry.reset()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "toy.yaml"
    path.write_text(RECIPE)
    return str(path)
