"""The commands `itoflow train` and `itoflow sample`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from itoflow import GenerativeModel, InputError
from itoflow_train.loop import build, fit
from itoflow_train.pictures import drawable, picture
from itoflow_train.quality import at_levels
from itoflow_train.recipe import read, shipped
from itoflow_train.report import conditions, draw_pictures, measure_quality, table
from itoflow_train.run import Run, load_run


def train(argv: list[str]) -> int:
    """Train the model of a recipe, draw from it, measure it, and leave all in a run folder."""
    parser = argparse.ArgumentParser(
        prog="itoflow train",
        description="Train the model of a recipe and report the quality of its samples.",
        epilog=f"Shipped recipes: {', '.join(shipped())}.",
    )
    parser.add_argument("recipe", help="a shipped recipe, or a YAML or JSON file")
    parser.add_argument("override", nargs="*", metavar="key=value", help="e.g. training.steps=500 process.beta_max=10")
    parser.add_argument("--out", type=Path, help="the run folder (default: runs/RECIPE)")
    parser.add_argument("--seed", type=int, help="the same as training.seed=SEED")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    arguments = parser.parse_args(argv)

    overrides = [*arguments.override, *([] if arguments.seed is None else [f"training.seed={arguments.seed}"])]
    recipe = read(arguments.recipe, overrides)
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    model = build(recipe)
    name = Path(arguments.recipe).stem
    run = Run(arguments.out) if arguments.out else Run.fresh(name, Path("runs"))
    run.write_recipe(recipe)
    start = time.perf_counter()
    trained = fit(recipe, model, run, quiet=arguments.quiet, cpu=arguments.cpu)
    trained.model.save(run.path / "model")
    draw_pictures(trained.model, recipe, run)
    quality = measure_quality(trained.model, recipe)
    parameters = sum(p.numel() for p in trained.model.parameters())
    training = {"seconds": trained.seconds, "loss": trained.loss, "parameters": parameters}
    total = time.perf_counter() - start
    figures = {**training, "total_seconds": total, "quality": None if quality is None else quality.to_dict()}
    run.write_json("report.json", figures)
    if not arguments.quiet:
        written = ", ".join(sorted(entry.name for entry in run.path.iterdir()))
        print(table(name, recipe, training, quality))
        print(f"\n{run.path} ({total:.0f} s in all): {written}")
    return 0


def sample(argv: list[str]) -> int:
    """Draw samples from a run: an array file, and a picture where the data can be drawn."""
    parser = argparse.ArgumentParser(prog="itoflow sample", description="Draw samples from a run or a saved model.")
    parser.add_argument("run", help="a run folder, or the folder of a saved model")
    parser.add_argument("-n", type=int, default=64, help="number of samples (default: 64)")
    parser.add_argument("--sampler", help="a sampler's name, or a mapping as JSON (default: the model's own)")
    parser.add_argument("--steps", type=int, help="number of time steps")
    parser.add_argument("--class", type=int, dest="label", help="class of all samples (default: the classes in turn)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file without suffix (default: RUN/samples-N)")
    arguments = parser.parse_args(argv)

    model = load_run(arguments.run)
    cond = _conditions(model, arguments.n, arguments.label)
    x = model.sample(
        arguments.n,
        cond,
        sampler=_sampler(arguments.sampler),
        steps=arguments.steps,
        generator=torch.Generator().manual_seed(arguments.seed),
    )
    out = arguments.out or Path(arguments.run) / f"samples-{arguments.n}"
    arrays = {"x": x.numpy(), **{name: np.asarray(value) for name, value in (cond or {}).items()}}
    try:
        np.savez(out.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
        written = [out.with_suffix(".npz")]
        if drawable(model.data):
            picture(at_levels(x, model.data), model.data).save(out.with_suffix(".png"))
            written.append(out.with_suffix(".png"))
    except OSError as error:
        raise InputError(f"Cannot write {out}: {error.strerror or error}.") from error
    print(" ".join(str(path) for path in written), file=sys.stdout)
    return 0


def _conditions(model: GenerativeModel, n: int, label: int | None) -> dict[str, torch.Tensor] | None:
    if label is None:
        return conditions(model, max(n, 0))
    return {"class": torch.tensor(label)}


def _sampler(text: str | None) -> str | dict[str, object] | None:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        mapping: dict[str, object] = json.loads(text)
    except ValueError as error:
        raise InputError(f"--sampler {text!r} does not parse as JSON: {error}.") from error
    return mapping
