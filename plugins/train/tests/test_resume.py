"""An interrupted run goes on as if it had not been: the same weights, bit for bit, and the same metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from itoflow import InputError
from itoflow_train.commands import train
from itoflow_train.run import Run, load_run

UNEVEN = ["data.labels=true", "training.checkpoint_every=13", "training.log_every=10"]
"""The last checkpoint, at step 26, lies between two lines of the metrics."""

INTERRUPTED = """
import sys
from itoflow_train import commands
from itoflow_train.run import Run

log = Run.log

def until_the_last(run, **metrics):
    if metrics["step"] == 30:
        raise SystemExit(3)
    log(run, **metrics)

Run.log = until_the_last
commands.train(sys.argv[1:])
"""


def metrics(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["learning_rate"]) for line in lines]


def same_weights(a, b):
    first, second = load_run(a).state_dict(), load_run(b).state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


def interrupted(monkeypatch, arguments, at=30):
    """Run `train` until it logs step `at`."""

    def log(run, **values):
        if values["step"] == at:
            raise KeyboardInterrupt
        whole(run, **values)

    whole = Run.log
    with monkeypatch.context() as context:
        context.setattr(Run, "log", log)
        with pytest.raises(KeyboardInterrupt):
            train(arguments)


def test_it_goes_on_as_if_nothing_had_been(tmp_path, recipe, monkeypatch, capsys):
    whole, run = tmp_path / "whole", tmp_path / "run"
    train([recipe, *UNEVEN, "--out", str(whole), "--cpu", "--quiet"])
    interrupted(monkeypatch, [recipe, *UNEVEN, "--out", str(run), "--cpu", "--quiet"])
    assert f"itoflow train --resume {run}" in capsys.readouterr().err
    assert [path.name for path in (run / "state").iterdir()] == ["step-000026"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')  # as of a machine that went down
    assert train(["--resume", str(run), "--cpu", "--quiet"]) == 0
    assert same_weights(whole, run)
    assert metrics(whole) == metrics(run)
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}
    seconds = [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)


def test_a_state_that_is_not_complete_is_passed_over(tmp_path, recipe, monkeypatch):
    run = tmp_path / "run"
    interrupted(monkeypatch, [recipe, *UNEVEN, "--out", str(run), "--cpu", "--quiet"])
    (run / "state" / "step-000039.partial").mkdir()
    assert train(["--resume", str(run), "--cpu", "--quiet"]) == 0


def test_what_cannot_go_on_says_why(tmp_path, recipe, monkeypatch):
    run = tmp_path / "run"
    with pytest.raises(InputError, match="is no run folder"):
        train(["--resume", str(run)])
    interrupted(monkeypatch, [recipe, "--out", str(run), "--cpu", "--quiet"], at=10)
    with pytest.raises(InputError, match="left before its first checkpoint"):
        train(["--resume", str(run)])
    other = tmp_path / "other"
    interrupted(monkeypatch, [recipe, "--out", str(other), "--cpu", "--quiet"])
    file = other / "state" / "step-000020" / "process-0.pt"
    torch.save({**torch.load(file), "processes": 2}, file)
    with pytest.raises(InputError, match=r"left with processes = 2, .* Here: processes = 1"):
        train(["--resume", str(other), "--cpu"])
    whole = tmp_path / "whole"
    train([recipe, "training.checkpoint_every=13", "--out", str(whole), "--cpu", "--quiet"])
    with pytest.raises(InputError, match="it is complete"):
        train(["--resume", str(whole)])


def test_two_processes(tmp_path, recipe):
    """One run folder, the batch divided; and they go on together."""

    def launch(*command):
        toy = str(Path(__file__).parent / "toy")
        path = os.pathsep.join([toy, *filter(None, [os.environ.get("PYTHONPATH")])])
        together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        return subprocess.run(
            [*together, *command, "--cpu", "--quiet"],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    whole = launch("-m", "itoflow", "train", recipe, *UNEVEN)
    assert whole.returncode == 0, whole.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["toy"]
    assert launch("interrupted.py", recipe, *UNEVEN, "--out", "run").returncode != 0
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["step-000026"]
    resumed = launch("-m", "itoflow", "train", "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert same_weights(tmp_path / "runs" / "toy", tmp_path / "run")
    assert metrics(tmp_path / "runs" / "toy") == metrics(tmp_path / "run")
