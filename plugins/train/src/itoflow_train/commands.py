"""The commands `itoflow train`, `itoflow sample` and `itoflow evaluate`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from itoflow import GenerativeModel, InputError, OptionError
from itoflow.parser import CommandParser
from itoflow_data import Split
from itoflow_train.evaluation import BATCH, CHECKED, Evaluation
from itoflow_train.evaluation import evaluate as likelihood_of
from itoflow_train.evaluation import table as likelihood_table
from itoflow_train.loop import Trained, build, fit
from itoflow_train.named import part
from itoflow_train.pictures import drawable, picture
from itoflow_train.quality import at_levels
from itoflow_train.recipe import Recipe, read, shipped
from itoflow_train.report import check_report, conditions, draw_pictures, measure_quality, table
from itoflow_train.run import Run, load_recipe, load_run, load_values
from itoflow_train.state import last_state
from itoflow_train.values import Values

LIMIT = 400
"""Examples of a part whose likelihood is computed."""


def train(argv: list[str]) -> int:
    """Train the model of a recipe, draw from it, measure it, and leave all in a run folder."""
    arguments = _train_arguments(argv)
    resume, out = arguments.resume, arguments.out
    main = PartialState(cpu=arguments.cpu).is_main_process
    run = Run.interrupted(resume) if resume else None
    recipe = read(str(resume / "recipe.json") if resume else arguments.recipe, arguments.override)
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    model = build(recipe)
    name = resume.resolve().name if resume else Path(arguments.recipe).stem
    check_report(recipe)
    if run is None and main:
        run = Run.new(out) if out else Run.fresh(name, Path("runs"))
        run.write_recipe(recipe)
    (run,) = broadcast_object_list([run])  # the folder that the main process found
    start = time.perf_counter()
    quiet = arguments.quiet or not main
    try:
        trained = fit(recipe, model, run, resume=resume is not None, quiet=quiet, cpu=arguments.cpu)
    except KeyboardInterrupt:
        if main and last_state(run.state):
            print(f"Interrupted. To go on: itoflow train --resume {run.path}", file=sys.stderr)
        raise
    if main:  # whose the report is
        text = _leave(trained, recipe, run, name, start)
        if not quiet:
            print(text)
    return 0


def _train_arguments(argv: list[str]) -> argparse.Namespace:
    """With the seed among the overrides.

    Raises:
        OptionError: neither a recipe nor a run to go on with, or both.
    """
    parser = CommandParser(
        "train",
        "Train the model of a recipe and report the quality of its samples.",
        epilog=f"Shipped recipes: {', '.join(shipped())}.",
    )
    parser.add_argument("recipe", nargs="?", help="a shipped recipe, or a YAML or JSON file")
    parser.add_argument(
        "override", nargs="*", metavar="key=value", default=[], help="e.g. training.steps=500 process.beta_max=10"
    )
    parser.add_argument("--out", type=Path, help="the run folder (default: runs/RECIPE)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an interrupted run, from its last state")
    parser.add_argument("--seed", type=int, help="the same as training.seed=SEED")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    arguments = parser.parse_intermixed_args(argv)
    seed = [] if arguments.seed is None else [f"training.seed={arguments.seed}"]
    if arguments.resume is None:
        possible = arguments.recipe is not None
    else:
        possible = arguments.recipe is None and not arguments.out and not seed
    if not possible:
        raise OptionError(
            "itoflow train takes a recipe and its options, or --resume RUN, whose recipe and folder are there already. "
            "See `itoflow train --help`."
        )
    arguments.override = [*arguments.override, *seed]
    return arguments


def _leave(trained: Trained, recipe: Recipe, run: Run, name: str, start: float) -> str:
    """Write model, pictures and figures into the run folder, and take away what it could go on from; the table."""
    trained.model.save(run.path / "model", overwrite=True)
    parameters = sum(p.numel() for p in trained.model.parameters())
    training = {"seconds": trained.seconds, "loss": trained.loss, "parameters": parameters}
    run.write_json("report.json", training)
    draw_pictures(trained.model, recipe, run)
    quality = measure_quality(trained.model, recipe)
    total = time.perf_counter() - start
    figures = {**training, "total_seconds": total, "quality": None if quality is None else quality.to_dict()}
    run.write_json("report.json", figures)
    shutil.rmtree(run.state, ignore_errors=True)
    written = ", ".join(sorted(entry.name for entry in run.path.iterdir()))
    return f"{table(name, recipe, training, quality)}\n\n{run.path} ({total:.0f} s in all): {written}"


def sample(argv: list[str]) -> int:
    """Draw samples from a run: an array file, and a picture where the data can be drawn."""
    parser = CommandParser("sample", "Draw samples from a run or a saved model.")
    parser.add_argument("run", help="a run folder, or the folder of a saved model")
    parser.add_argument("-n", type=int, default=64, help="number of samples (default: 64)")
    parser.add_argument("--sampler", help="NAME, NAME:option=value or JSON (default: the model's own)")
    parser.add_argument("--steps", type=int, help="number of time steps")
    parser.add_argument("--class", type=int, dest="label", help="class of all samples (default: the classes in turn)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file, .npz and .png are added (default: RUN/samples-N)")
    arguments = parser.parse_args(argv)

    model, values = load_run(arguments.run), load_values(arguments.run)
    cond = _conditions(model, arguments.n, arguments.label)
    x = model.sample(
        arguments.n,
        cond,
        sampler=None if arguments.sampler is None else part(arguments.sampler, "--sampler"),
        steps=arguments.steps,
        generator=torch.Generator().manual_seed(arguments.seed),
    )
    data = model.data if values is None else values.data
    x = x if values is None else values.leave(x)
    out = arguments.out or Path(arguments.run) / f"samples-{arguments.n}"
    out = out.with_suffix("") if out.suffix in (".npz", ".png") else out
    arrays = {"x": x.numpy(), **{name: np.asarray(value) for name, value in (cond or {}).items()}}
    try:
        written = [out.with_name(f"{out.name}.npz")]
        np.savez(written[0], **arrays)  # type: ignore[arg-type]
        if drawable(data):
            written.append(out.with_name(f"{out.name}.png"))
            picture(at_levels(x, data), data).save(written[1])
    except OSError as error:
        raise InputError(f"Cannot write {out}: {error.strerror or error}.") from error
    print(" ".join(str(path) for path in written), file=sys.stdout)
    return 0


def evaluate(argv: list[str]) -> int:
    """Print the likelihood of a run's data under its model, and leave it in the run folder."""
    parser = CommandParser(
        "evaluate",
        "Nats and bits per dimension of the test and train data, by the probability-flow ODE.",
    )
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--parts", nargs="+", choices=["test", "train"], default=["test", "train"])
    parser.add_argument("--limit", type=int, default=LIMIT, help=f"examples of each part, the first (default: {LIMIT})")
    parser.add_argument("--all", action="store_true", help="all examples of each part")
    parser.add_argument("--draws", type=int, default=4, help="dequantisations of each example (default: 4)")
    parser.add_argument("--exact", action="store_true", help="the exact divergence for all examples (default: probes)")
    parser.add_argument("--probes", type=int, default=1, help="Rademacher probes of an example (default: 1)")
    parser.add_argument(
        "--method", default="dopri5:norm=rms", help="a sampler that integrates, as for `sample` (default: %(default)s)"
    )
    parser.add_argument("--rtol", type=float, default=1e-3, help="relative tolerance (default: 1e-3)")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"examples solved together (default: {BATCH})")
    parser.add_argument(
        "--check", type=int, default=CHECKED, help=f"examples that are solved again for the errors (default: {CHECKED})"
    )
    parser.add_argument(
        "--bound", type=int, default=32, metavar="TIMES", help="times of the reverse SDE's bound, or 0 (default: 32)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON, and show no progress")
    arguments = parser.parse_args(argv)

    for name in ("limit", "draws", "check", "batch"):
        number = getattr(arguments, name)
        if number < 1:
            raise InputError(f"--{name} must be at least 1. Given: {number}.")
    recipe = load_recipe(arguments.run)
    if recipe is None:
        raise InputError(f"{arguments.run} is no run folder, so its data are unknown. Give the folder of a run.")
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    model = load_run(arguments.run)
    # On the levels a density means nothing, so they get noise even where training saw none.
    values = Values(recipe.data, dequantised=recipe.data.spec.levels is not None)
    divergence = (
        {"divergence": "exact"} if arguments.exact else {"divergence": "hutchinson", "probes": arguments.probes}
    )
    parts: dict[Split, Evaluation] = {
        split: likelihood_of(
            model,
            values,
            values.source.load(split)[: None if arguments.all else arguments.limit],
            draws=arguments.draws,
            seed=arguments.seed,
            method=part(arguments.method, "--method"),
            rtol=arguments.rtol,
            batch=arguments.batch,
            check=arguments.check,
            bound_times=arguments.bound,
            progress=None if arguments.json else split,
            **divergence,
        )
        for split in arguments.parts
    }
    figures = {split: found.to_dict() for split, found in parts.items()}
    text = json.dumps(figures, indent=2)
    print(text if arguments.json else likelihood_table(parts))
    file = Path(arguments.run) / "likelihood.json"
    try:
        file.write_text(text + "\n")
    except OSError as error:
        raise InputError(f"Cannot write {file}: {error.strerror or error}. The figures are those above.") from error
    return 0


def _conditions(model: GenerativeModel, n: int, label: int | None) -> dict[str, torch.Tensor] | None:
    if model.data.vector is not None:
        raise InputError(
            "This model has vectors as conditions, which no option gives. In Python: "
            "itoflow_train.run.load_run(RUN).sample(n, cond={'vector': ...})."
        )
    if label is None:
        return conditions(model, max(n, 0))
    return {"class": torch.tensor(label)}
