"""Recipes: a model, its data and its training as one document, YAML or JSON, every value overridable.

    data: {name: digits}
    process: {name: vp}
    objective: {name: dsm, prediction: v}
    backbone: {name: mlp, width: 256}
    sampler: {name: heun, steps: 18}
    training: {steps: 2000}

A component is a name or a mapping with `name` and its options, as in `itoflow.compose`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Lt

from itoflow import Backbone, InputError, Objective, ProcessSpec, Sampler, Spec, UnknownComponentError
from itoflow.errors import did_you_mean, listing
from itoflow_data import DataSource


class TrainingOptions(Spec):
    """AdamW with linear warm-up and a decay, gradient clipping, and a moving average of the weights."""

    steps: Annotated[int, Ge(1)] = 10000
    """Optimiser steps."""
    batch_size: Annotated[int, Ge(1)] = 128
    """Examples per step, over all processes."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Peak learning rate."""
    warmup: Annotated[int, Ge(0)] = 100
    """Steps over which the learning rate rises linearly."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """Fall of the learning rate from its peak to zero."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled weight decay of AdamW, for matrices only."""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.999)
    """Decay rates of AdamW's moments."""
    clip: Annotated[float, Gt(0)] | None = 1.0
    """Largest norm of the gradient, or null for no clipping."""
    ema: Annotated[float, Ge(0), Lt(1)] = 0.999
    """Decay per step of the moving average of the weights, which is what is saved; it rises to this from 0.1."""
    dequantise: bool = False
    """Add uniform noise of one level's width to discrete data, anew at every step."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of Hugging Face accelerate."""
    threads: Annotated[int, Ge(1)] | None = None
    """CPU threads, or null for torch's own choice. A small network is best off with one: on a busy machine the others
    wait for each other much longer than they compute."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of initial weights, batches, times and noise."""
    log_every: Annotated[int, Ge(1)] = 50
    """Steps between the lines of metrics.jsonl."""
    checkpoint_every: Annotated[int, Ge(1)] = 1000
    """Steps between checkpoints."""


class ReportOptions(Spec):
    """What is drawn and measured after training; see `itoflow_train.quality`."""

    grid: Annotated[int, Ge(0)] = 64
    """Samples in the picture; 0 draws none."""
    frames: Annotated[int, Ge(0)] = 24
    """Frames in the film of the trajectory; 0 makes none."""
    samples: Annotated[int, Ge(0)] = 360
    """Size of each generated set that is compared with as many test examples; 0 measures nothing."""
    sets: Annotated[int, Ge(1)] = 5
    """Number of generated sets whose distances are averaged."""
    floor_draws: Annotated[int, Ge(1)] = 200
    """Number of draws of training examples whose distances to the test examples are averaged."""
    baselines: bool = True
    """Compare a Gaussian and a mixture of ten, too; fitting them takes long for examples of many hundred values."""
    judge: bool = False
    """Judge class-conditional samples by a support-vector classifier."""
    judge_samples: Annotated[int, Ge(1)] = 1000
    """Number of judged samples, the same of each class."""


class Recipe(Spec):
    """Everything that a run needs."""

    summary: str = ""
    """One line for people."""
    data: DataSource
    """The data set."""
    process: ProcessSpec
    """How data becomes noise."""
    objective: Objective
    """What the network learns."""
    backbone: Backbone
    """The network."""
    sampler: Sampler
    """What samples are drawn with."""
    training: TrainingOptions = TrainingOptions()
    """Optimisation."""
    report: ReportOptions = ReportOptions()
    """Pictures and measurements at the end."""


def shipped() -> list[str]:
    """The names of the recipes that come with itoflow-train."""
    folder = resources.files("itoflow_train") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(recipe: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a shipped name or of a YAML or JSON file, with `key.key=value` overrides.

    Raises:
        InputError: no such recipe or file, a file that does not parse, an override that is not `key=value`.
        OptionError, UnknownComponentError: an option or a component that does not exist.
    """
    document = _document(recipe)
    for override in overrides:
        _override(document, override)
    try:
        return Recipe(**document)
    except UnknownComponentError as error:
        if recipe not in shipped():
            raise
        raise UnknownComponentError(
            f"{error}\nThe shipped recipes use components of other plugins: pip install itoflow-train[recipes]"
        ) from error


class _Once(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _document(recipe: str) -> dict[str, Any]:
    if recipe in shipped():
        text, source = (resources.files("itoflow_train") / "recipes" / f"{recipe}.yaml").read_text("utf-8"), recipe
    else:
        path = Path(recipe)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is neither a shipped recipe nor a file"
            raise InputError(
                f"{recipe!r} {what}.{did_you_mean(recipe, shipped())} Shipped: {listing(shipped())}. "
                "Or give a YAML or JSON file."
            )
        try:
            text, source = path.read_text("utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"Cannot read {recipe}: {error}.") from error
    try:
        document = yaml.load(text, Loader=_Once)
    except yaml.YAMLError as error:
        raise InputError(f"{source} does not parse as YAML or JSON: {error}") from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise InputError(f"{source} must hold a mapping with keys {', '.join(Recipe.model_fields)}.")
    return document


def _override(document: dict[str, Any], override: str) -> None:
    """Set one value of a document; a component given by its name alone becomes a mapping when an option is set."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"Override {override!r} is not key=value, e.g. training.steps=500 or process.beta_max=10.")
    try:
        value = yaml.load(text, Loader=_Once)
    except yaml.YAMLError as error:
        raise InputError(f"The value of {override!r} does not parse as YAML: {error}") from error
    if isinstance(value, str):
        value = _number(value)
    target = document
    for part in parts[:-1]:
        inner = target.get(part)
        if isinstance(inner, str):
            inner = {"name": inner}
        target[part] = dict(inner) if isinstance(inner, Mapping) else {}
        target = target[part]
    target[parts[-1]] = value


def _number(text: str) -> float | str:
    """YAML 1.1 reads 1e-3 as text; people mean a number."""
    try:
        return float(text)
    except ValueError:
        return text
