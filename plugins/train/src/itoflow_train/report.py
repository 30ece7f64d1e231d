"""The end of a run: pictures, figures, and the table that people read."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from itoflow import GenerativeModel, InputError, Step
from itoflow_train.pictures import Film, drawable, picture
from itoflow_train.quality import Quality, at_levels, measure
from itoflow_train.recipe import Recipe
from itoflow_train.run import Run
from itoflow_train.values import Values

SEED = 20_000
"""Added to the run's seed for sampling, so that samples are drawn apart from training."""


def conditions(model: GenerativeModel, n: int, classes: Tensor | None = None) -> dict[str, Tensor] | None:
    """Class conditions for n samples, the classes in turn unless given; None for an unconditional model."""
    if model.data.classes is None:
        return None
    return {"class": torch.arange(n) % model.data.classes if classes is None else classes}


def check_report(recipe: Recipe) -> None:
    """Refuse, before training, a report that the data do not allow.

    Raises:
        InputError: a judge of classes, and data without.
    """
    if recipe.report.judge and recipe.data.spec.classes is None:
        raise InputError("report.judge needs data with classes, e.g. data.labels=true.")


def draw_pictures(model: GenerativeModel, recipe: Recipe, run: Run) -> None:
    """samples.png, and trajectory.gif: from the same noise, with a step for each frame."""
    values = Values.of(recipe)
    n, data = recipe.report.grid, values.data
    if not n or not drawable(data) or model.data.vector is not None:
        return
    n = n if len(data.shape) == 3 else max(n, 2000)
    seed = recipe.training.seed + SEED
    x = model.sample(n, conditions(model, n), generator=torch.Generator(model.device).manual_seed(seed))
    picture(at_levels(values.leave(x), data), data).save(run.path / "samples.png")
    frames = recipe.report.frames
    if frames:
        film = Film(model, values, frames)
        steps = frames if "steps" in type(recipe.sampler).model_fields else None
        generator = torch.Generator(model.device).manual_seed(seed)
        model.sample(n, conditions(model, n), steps=steps, generator=generator, callback=film)
        film.write(run.path / "trajectory.gif")


def measure_quality(model: GenerativeModel, recipe: Recipe) -> Quality | None:
    """The figures, or None where the recipe asks for none."""
    options = recipe.report
    if not options.samples or model.data.vector is not None:
        return None
    values = Values.of(recipe)
    train, test = values.source.load("train"), values.source.load("test")
    generator = torch.Generator(model.device).manual_seed(recipe.training.seed + SEED + 1)

    def draw(n: int, classes: Tensor | None) -> Tensor:
        return values.leave(model.sample(n, conditions(model, n, classes), generator=generator)).cpu()

    calls: list[Step] = []
    start = time.perf_counter()
    model.sample(options.samples, conditions(model, options.samples), generator=generator, callback=calls.append)
    rate = options.samples / (time.perf_counter() - start)
    return measure(
        values.data,
        train,
        test,
        options,
        draw,
        evaluations=len(calls),
        samples_per_second=rate,
        seed=recipe.training.seed,
    )


def table(name: str, recipe: Recipe, training: dict[str, Any], quality: Quality | None) -> str:
    """The figures for people."""
    steps, seconds = recipe.training.steps, training["seconds"]
    per_second = steps * recipe.training.batch_size / seconds
    lines = [
        f"{name}: {training['parameters']:,} parameters, {steps:,} steps of {recipe.training.batch_size} in "
        f"{seconds:.1f} s ({steps / seconds:.1f} steps/s, {per_second:,.0f} examples/s), loss {training['loss']:.4g}"
    ]
    if quality is not None:
        size, sets = quality.size, recipe.report.sets
        lines += [
            "",
            "energy distance to the test data, over that of real data",
            _line(
                "real data",
                "1.00",
                f"{recipe.report.floor_draws} draws of {size}, distance {quality.floor:.3g}",
            ),
            *(
                _line(label, f"{ratio:.2f}")
                for label, ratio in (
                    ("Gaussian, full covariance", quality.gaussian),
                    ("mixture of 10 Gaussians", quality.mixture),
                )
                if ratio is not None
            ),
            _line("this model", f"{quality.energy:.2f}", f"mean of {sets} sets of {size}"),
            "",
            _line("nearest training example", f"{quality.copying:.2f}", "of a test example's; copies would be near 0"),
            _line(
                "network evaluations",
                f"{quality.evaluations}",
                f"a sample; {quality.samples_per_second:,.0f} samples/s",
            ),
        ]
        if quality.agreement is not None:
            note = f"worst class {quality.worst_agreement:.1%}; on test data the judge has {quality.judge_accuracy:.1%}"
            lines.append(_line("judge agrees with the class", f"{quality.agreement:.1%}", note))
    return "\n".join(lines)


def _line(label: str, value: str, note: str = "") -> str:
    return f"  {label:<30}{value:>7}  {note}".rstrip()
