"""The commands, from a recipe to a run folder to samples, on a small run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from itoflow import InputError, ModelFileError, NumericalError, OptionError, load
from itoflow_train.commands import evaluate, sample, train
from itoflow_train.loop import build, fit
from itoflow_train.recipe import read
from itoflow_train.run import Run, load_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("runs") / "digits"
    assert train([recipe, "--out", str(path), "--cpu", "--quiet"]) == 0
    return path


def test_run_folder(trained):
    assert {p.name for p in trained.iterdir()} == {
        "recipe.json",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "samples.png",
        "trajectory.gif",
        "report.json",
    }
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert set(lines[0]) == {"step", "loss", "learning_rate", "seconds", "examples_per_second"}
    assert [p.name for p in (trained / "checkpoints").iterdir()] == ["step-000020"]
    load(trained / "checkpoints" / "step-000020")
    quality = json.loads((trained / "report.json").read_text())["quality"]
    assert quality["energy"] > 1
    with Image.open(trained / "trajectory.gif") as film:
        assert film.n_frames > 3


def test_a_run_is_reproducible(trained, tmp_path, recipe):
    train([recipe, "--out", str(tmp_path / "again"), "--cpu", "--quiet"])
    first, again = load_run(trained).state_dict(), load_run(tmp_path / "again").state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    train([recipe, "--seed", "1", "--out", str(tmp_path / "other"), "--cpu", "--quiet"])
    other = load_run(tmp_path / "other").state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_sample(trained, capsys):
    assert (
        sample([str(trained), "-n", "9", "--sampler", '{"name": "toy-sampler", "denoise": false}', "--steps", "3"]) == 0
    )
    assert "samples-9.npz" in capsys.readouterr().out
    with np.load(trained / "samples-9.npz") as arrays:
        assert arrays["x"].shape == (9, 1, 8, 8)


def test_names_of_files_with_points_stay_apart(trained, tmp_path):
    for eta in ("0.5", "0.7"):
        sample([str(trained), "-n", "1", "--out", str(tmp_path / f"eta{eta}")])
    sample([str(trained), "-n", "1", "--out", str(tmp_path / "one.npz")])
    written = {f"{name}{end}" for name in ("eta0.5", "eta0.7", "one") for end in (".npz", ".png")}
    assert {path.name for path in tmp_path.iterdir()} == written


def test_a_saved_model_is_sampled_too(trained, tmp_path, capsys):
    sample([str(trained / "model"), "-n", "2", "--out", str(tmp_path / "x")])
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["x"].shape == (2, 1, 8, 8)
    with pytest.raises(InputError, match="is no run folder"):
        evaluate([str(trained / "model")])


def test_data_with_vectors_are_trained_on_and_not_drawn(tmp_path, recipe):
    rng = np.random.default_rng(0)
    x, vector = (rng.normal(size=(20, *shape)).astype(np.float32) for shape in ((1, 4, 4), (3,)))
    np.savez(tmp_path / "data.npz", x=x, vector=vector)
    data = json.dumps({"name": "array-file", "path": str(tmp_path / "data.npz"), "vector": True})
    out = tmp_path / "out"
    assert train([recipe, f"data={data}", "training.batch_size=8", "--out", str(out), "--cpu", "--quiet"]) == 0
    assert json.loads((out / "report.json").read_text())["quality"] is None
    with pytest.raises(InputError, match="vectors as conditions"):
        sample([str(out), "-n", "1"])


def test_a_judge_without_classes_is_refused_before_training(tmp_path, recipe):
    with pytest.raises(InputError, match="needs data with classes"):
        train([recipe, "report.judge=true", "--out", str(tmp_path / "out"), "--cpu", "--quiet"])
    assert not (tmp_path / "out").exists()


def test_table_and_silence(tmp_path, capsys, recipe):
    train([recipe, "--out", str(tmp_path / "a"), "--cpu"])
    out, err = capsys.readouterr()
    assert "this model" in out
    assert "steps/s" in out
    assert err == ""  # standard error is no terminal here, so there is no progress bar
    train([recipe, "--out", str(tmp_path / "b"), "--cpu", "--quiet"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["two-moons", "gaussian-mixture", "swiss-roll"])
def test_points_are_drawn_too(tmp_path, name, recipe):
    train([recipe, f"data={name}", "--out", str(tmp_path / "run"), "--cpu", "--quiet"])
    assert (tmp_path / "run" / "samples.png").exists()


def test_conditional_judge(tmp_path, recipe):
    changes = ["data.labels=true", "report.judge=true", "report.judge_samples=40"]
    train([recipe, *changes, "--out", str(tmp_path / "run"), "--cpu", "--quiet"])
    quality = json.loads((tmp_path / "run" / "report.json").read_text())["quality"]
    assert quality["judge_accuracy"] >= 0.985
    assert 0 <= quality["worst_agreement"] <= quality["agreement"] <= 1
    assert sample([str(tmp_path / "run"), "-n", "3", "--class", "7"]) == 0
    with np.load(tmp_path / "run" / "samples-3.npz") as arrays:
        assert arrays["class"].tolist() == 7


def test_bad_calls(trained, tmp_path, recipe):
    with pytest.raises(InputError, match="not empty"):
        train([recipe, "--out", str(trained)])
    with pytest.raises(InputError, match="judge needs data with classes"):
        train([recipe, "report.judge=true", "--out", str(tmp_path / "x"), "--quiet"])
    with pytest.raises(InputError, match="whole number"):
        sample([str(trained), "-n", "-3"])
    with pytest.raises(InputError, match="does not parse as JSON"):
        sample([str(trained), "--sampler", "{"])
    with pytest.raises(InputError, match="unexpected"):
        sample([str(trained), "--class", "3"])
    with pytest.raises(ModelFileError, match="No saved model"):
        sample([str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seed", "1", "trainin.steps=3"], "no option 'trainin'.* mean 'training'"),
        (["--nope"], "unrecognized arguments: --nope.* See `itoflow train --help`"),
    ],
)
def test_a_command_line_that_train_does_not_understand(recipe, options, says):
    """Overrides may follow options."""
    with pytest.raises(OptionError, match=says):
        train([recipe, *options])
    for arguments in ([], ["--resume", "run", recipe], ["--resume", "run", "--seed", "1"]):
        with pytest.raises(OptionError, match="takes a recipe and its options, or --resume RUN"):
            train(arguments)


def test_a_loss_that_explodes_is_named(tmp_path, recipe):
    changed = read(recipe, ["training.learning_rate=1e30", "training.clip=null", "training.warmup=0"])
    with pytest.raises(NumericalError, match=r"between steps .* Lower training.learning_rate"):
        fit(changed, build(changed), Run.new(tmp_path / "run"), quiet=True, cpu=True)


def test_dequantisation_needs_levels(tmp_path, recipe):
    changed = read(recipe, ["data=two-moons", "training.dequantise=true"])
    with pytest.raises(InputError, match="no levels"):
        fit(changed, build(changed), Run.new(tmp_path / "run"), quiet=True, cpu=True)
