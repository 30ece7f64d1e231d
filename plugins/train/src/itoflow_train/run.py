"""The folder of one run: what it was made of, how it went, and what it gave.

recipe.json      the recipe, complete with every default
metrics.jsonl    one JSON object per logged step
checkpoints/     step-000500/, ...: saved models, averaged weights
state/           what an interrupted run goes on from; see `itoflow_train.state`
model/           the saved model at the end
samples.png      a grid of samples
trajectory.gif   the same samples from noise to data
report.json      the figures of the printed table
likelihood.json  of `itoflow evaluate`
samplers.csv     of `itoflow compare-samplers`, with samplers-error.png
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itoflow import GenerativeModel, InputError, load
from itoflow.storage import MANIFEST
from itoflow_train.recipe import Recipe, read
from itoflow_train.state import last_state
from itoflow_train.values import Values


class Run:
    """A run folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, path / "state"

    @classmethod
    def new(cls, path: Path) -> Run:
        """A folder that does not exist, or is empty.

        Raises:
            InputError: the folder exists and is not empty, or cannot be made.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot make the run folder {path}: {error.strerror or error}.") from error
        if any(path.iterdir()):
            raise InputError(
                f"The run folder {path} is not empty. Choose another by --out, or go on by --resume {path}."
            )
        return cls(path)

    @classmethod
    def fresh(cls, name: str, root: Path) -> Run:
        """`root/name`, or the first of `root/name-2`, `root/name-3`, ... that does not exist."""
        path, number = root / name, 1
        while path.exists():
            number += 1
            path = root / f"{name}-{number}"
        return cls.new(path)

    @classmethod
    def interrupted(cls, path: Path) -> Run:
        """One that training can go on in.

        Raises:
            InputError: there is no run, it is complete, or it was left before its first checkpoint.
        """
        if load_recipe(path) is None:
            raise InputError(f"{path} is no run folder, so there is nothing to go on with. See `itoflow train --help`.")
        run = cls(path)
        run.last_state()
        return run

    def last_state(self) -> Path:
        """The folder that training goes on from.

        Raises:
            InputError: there is none, as the run is complete, or was left before its first checkpoint.
        """
        found = last_state(self.state)
        if found is None:
            why = "it is complete" if (self.path / "model").is_dir() else "it was left before its first checkpoint"
            raise InputError(f"{self.path} has no state to go on from: {why}. Start another run: itoflow train RECIPE.")
        return found

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write one JSON file of the folder."""
        (self.path / name).write_text(json.dumps(content, indent=2) + "\n")

    def write_recipe(self, recipe: Recipe) -> None:
        """recipe.json."""
        self.write_json("recipe.json", recipe.to_dict())

    def log(self, **metrics: float) -> None:
        """One line of metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def rewind(self, step: int) -> None:
        """Take lines after this step off metrics.jsonl: they come again."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
        file.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))

    def checkpoint(self, model: GenerativeModel, step: int) -> Path:
        """checkpoints/step-NNNNNN."""
        return model.save(self.path / "checkpoints" / f"step-{step:06d}", overwrite=True)


def load_values(path: str | Path) -> Values | None:
    """What the data of a run folder are; None for a saved model's folder, whose samples stay as it sees them.

    Raises:
        InputError: recipe.json does not parse.
    """
    recipe = load_recipe(path)
    return None if recipe is None else Values.of(recipe)


def load_recipe(path: str | Path) -> Recipe | None:
    """The recipe of a run folder; None where there is none, as in a saved model's folder, whose file is another.

    Raises:
        InputError: recipe.json does not parse.
    """
    file = Path(path) / "recipe.json"
    return read(str(file)) if file.is_file() and not (Path(path) / MANIFEST).exists() else None


def load_run(path: str | Path) -> GenerativeModel:
    """The model of a run folder, or of a saved model's folder.

    Raises:
        ModelFileError: there is none, or it is damaged.
    """
    folder = Path(path)
    return load(folder / "model" if (folder / "model").is_dir() else folder)
