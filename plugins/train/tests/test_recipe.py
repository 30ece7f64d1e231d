"""Recipes: shipped ones, files, overrides, and what is wrong with bad ones."""

from __future__ import annotations

import json

import pytest

from itoflow import InputError, OptionError, UnknownComponentError, registry
from itoflow_train.loop import schedule
from itoflow_train.recipe import Recipe, TrainingOptions, read


def test_json_round_trip(recipe):
    first = read(recipe)
    assert Recipe(**json.loads(json.dumps(first.to_dict()))) == first


def test_a_json_file_is_a_recipe(tmp_path, recipe):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(read(recipe).to_dict()))
    assert read(str(path)) == read(recipe)


def test_overrides_reach_every_level(recipe):
    changed = read(recipe, ["training.learning_rate=1e-5", "process.scale=3", "backbone.width=8"])
    assert changed.training.learning_rate == 1e-5
    assert changed.process.scale == 3
    assert changed.backbone.width == 8
    assert changed.training.steps == read(recipe).training.steps


@pytest.mark.parametrize(
    ("override", "error", "says"),
    [
        ("training.steps", InputError, "key=value"),
        ("=3", InputError, "key=value"),
        ("training.steps=[1", InputError, "does not parse"),
        ("training.steps=0", OptionError, "steps: Input should be greater"),
        ("training.stepz=5", OptionError, "Did you mean 'steps'"),
        ("trainng.steps=5", OptionError, "Did you mean 'training'"),
        ("process=toy-proces", UnknownComponentError, "Did you mean 'toy-process'"),
        ("process.t_min=-1", OptionError, "t_min"),
        ("data=nowhere", UnknownComponentError, "digits"),
        ("sampler.steps=none", OptionError, "steps"),
    ],
)
def test_wrong_overrides(recipe, override, error, says):
    with pytest.raises(error, match=says):
        read(recipe, [override])


def test_a_shipped_recipe_says_what_to_install(monkeypatch):
    monkeypatch.setenv("ITOFLOW_PLUGINS", "itoflow-train,itoflow-data")
    registry.reset()
    with pytest.raises(UnknownComponentError, match=r"pip install itoflow-train\[recipes\]"):
        read("digits")
    registry.reset()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [1", "does not parse"),
        ("training: {steps: 1, seed: 2, steps: 3}", "steps is given twice"),
        ("[1, 2]", "mapping"),
        ("", "mapping"),
        ("3: x", "mapping"),
        ("? [1, 2]\n: 3", "does not parse"),
        ("\x00", "does not parse"),
    ],
)
def test_wrong_files(tmp_path, content, says):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        read(str(path))


def test_unknown_recipe_says_what_is_shipped(tmp_path):
    with pytest.raises(InputError, match=r"Did you mean 'digits'.*Shipped: .*digits"):
        read("digit")
    with pytest.raises(InputError, match="is a folder"):
        read(str(tmp_path))


def test_missing_part():
    with pytest.raises(OptionError, match="'process' is required"):
        Recipe(data="digits")


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_schedule_rises_then_falls(decay):
    options = TrainingOptions(steps=100, warmup=10, decay=decay)
    rates = [schedule(options, step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert all(rate > 0 for rate in rates)
    assert (rates[-1] < 0.02) is (decay != "constant")


def test_warmup_longer_than_the_run():
    options = TrainingOptions(steps=5, warmup=10)
    assert schedule(options, 5) == 0.5
