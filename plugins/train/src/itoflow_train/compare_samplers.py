"""The command `itoflow compare-samplers`: error against evaluations, and which sampler to take for a budget."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Literal

from itoflow import InputError, ItoflowError, Sampler, available, create
from itoflow.errors import did_you_mean, listing
from itoflow.parser import CommandParser
from itoflow_train.comparison import Comparison, Error, Measured, compare, refuse
from itoflow_train.named import part, split
from itoflow_train.run import load_run
from itoflow_train.targets import ORACLES, ModelTarget, OracleTarget, Target

DEFAULTS = ("auto", "unipc", "dpm-solver++", "exponential-adams", "deis", "adams", "rk4", "heun", "ddim", "euler")
"""Of these, those that are installed and run on the process are compared where none is named."""
BY: tuple[Literal["median", "rmse"], ...] = ("median", "rmse")


def compare_samplers(argv: list[str]) -> int:
    """Measure samplers on a run or an exact law: a table, a plot, and a recommendation for a budget."""
    arguments = _parser().parse_args(argv)
    nfe = sorted({*_numbers(arguments.nfe), *([] if arguments.budget is None else [arguments.budget])})
    if nfe[0] < 1:
        raise InputError(f"--nfe and --budget are numbers of evaluations, at least 1. Given: {nfe[0]}.")
    if arguments.examples < 2:
        raise InputError(f"--examples must be at least 2. Given: {arguments.examples}.")
    target = _target(arguments)
    samplers = _samplers(arguments.samplers, target)
    tight = "1e-6" if isinstance(target, ModelTarget) else "1e-8"
    reference = create("sampler", **part(arguments.reference or f"dopri5:rtol={tight}:atol={tight}", "--reference"))
    refuse("--reference", reference, target.process)

    found = compare(target, samplers, nfe, reference)
    print(f"{target.title}, {arguments.examples} examples: error of an example, in standard deviations of the data,")
    print(f"median/RMSE for at most so many evaluations (@ those made); reference: {reference!r}\n")
    print(_table(found))
    if arguments.budget is not None:
        print("\n" + _recommended(found, arguments.budget))
    out = arguments.out or _folder(arguments)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_csv(found, out / "samplers.csv")
        from itoflow_train.curves import plot  # matplotlib is slow to import

        plot(target.title, found, out / "samplers-error.png", budget=arguments.budget)
    except OSError as error:
        raise InputError(f"Cannot write to {out}: {error.strerror or error}. Choose another by --out.") from error
    print(f"\n{out / 'samplers.csv'} {out / 'samplers-error.png'}")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "compare-samplers",
        "Error of deterministic samplers against network evaluations, on a trained run (against a tight "
        "solve of its own probability-flow ODE) or on an exact law.",
        epilog=f"Exact laws: {', '.join(ORACLES)}.",
    )
    parser.add_argument("target", metavar="RUN_OR_ORACLE", help="a run folder, a saved model's folder, or an exact law")
    parser.add_argument("--process", help="of an exact law: NAME, NAME:option=value or JSON (default: vp)")
    parser.add_argument(
        "--samplers",
        nargs="+",
        metavar="SAMPLER",
        help="with commas between: NAME, NAME:option=value:..., or a mapping as JSON (default: those of "
        f"{', '.join(DEFAULTS)} that fit, and the run's own)",
    )
    parser.add_argument("--nfe", nargs="+", default=["6,10,18,32,64"], help="evaluations (default: 6,10,18,32,64)")
    parser.add_argument("--budget", type=int, metavar="NFE", help="recommend a sampler for so many evaluations")
    parser.add_argument("--examples", type=int, default=256, help="runs that are compared (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that all start from (default: 0)")
    parser.add_argument("--reference", metavar="SAMPLER", help="the tight solve (default: dopri5, rtol 1e-8; run 1e-6)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder (default: the run, or compare-samplers/LAW-PROCESS)"
    )
    return parser


def _numbers(texts: list[str]) -> list[int]:
    try:
        found = [int(text) for text in split(texts)]
    except ValueError as error:
        raise InputError(f"--nfe {' '.join(texts)} is no list of whole numbers, e.g. --nfe 6,10,18.") from error
    if not found:
        raise InputError("--nfe names no number, e.g. --nfe 6,10,18.")
    return found


def _target(arguments: argparse.Namespace) -> Target:
    name, examples, seed = arguments.target, arguments.examples, arguments.seed
    if name in ORACLES:
        process = create("process", **part(arguments.process or "vp", "--process"))
        return OracleTarget(name, process, examples, seed)
    if not Path(name).is_dir():
        raise InputError(
            f"{name!r} is neither a folder nor an exact law.{did_you_mean(name, ORACLES)} Give a run folder, or one of "
            f"{listing(ORACLES)}."
        )
    if arguments.process is not None:
        raise InputError(f"--process is for exact laws; {name} is a folder, whose model has its own. Leave it out.")
    return ModelTarget(name, load_run(name), examples, seed)


def _samplers(texts: list[str] | None, target: Target) -> dict[str, Sampler]:
    if texts is not None:
        named = {text: create("sampler", **part(text, "--samplers")) for text in split(texts)}
        if not named:
            raise InputError(f"--samplers names none. Installed: {listing(available('sampler'))}.")
        return named
    installed = available("sampler")
    found = {name: create("sampler", name) for name in DEFAULTS if name in installed}
    found = found or {name: create("sampler", name) for name in installed}
    own = target.model.sampler if isinstance(target, ModelTarget) else None
    if own is not None and own not in found.values():
        found["the run's own"] = own
    fitting = {label: sampler for label, sampler in found.items() if _fits(label, sampler, target)}
    if not fitting:
        raise InputError(
            f"No installed sampler that is deterministic fits {target.process!r}. Name some by --samplers."
        )
    return fitting


def _fits(label: str, sampler: Sampler, target: Target) -> bool:
    try:
        refuse(label, sampler, target.process)
    except ItoflowError:
        return False
    return True


def _folder(arguments: argparse.Namespace) -> Path:
    if arguments.target not in ORACLES:
        return Path(arguments.target)
    process = part(arguments.process or "vp", "--process")["name"].rpartition(":")[2]
    return Path("compare-samplers") / f"{arguments.target}-{process}"


def _table(found: Comparison) -> str:
    rows = [["sampler", *(f"NFE {n}" for n in found.nfe)]]
    for label, row in found.rows.items():
        rows.append([label, *(_cell(row[n], n) for n in found.nfe)])
    for by in BY:
        best = [found.best(n, by) for n in found.nfe]
        rows.append([f"best by {_by(by)}", *("-" if b is None else b[0] for b in best)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(-2, "")
    lines.append(f"floor (error of the reference, {found.reference_evaluations} evaluations): {_error(found.floor)}")
    return "\n".join([*lines, *found.notes])


def _cell(measured: Measured | None, nfe: int) -> str:
    if measured is None:
        return "-"
    return _error(measured.error) + ("" if measured.evaluations == nfe else f" @{measured.evaluations}")


def _error(error: Error) -> str:
    return f"{error.median:.1e}/{error.rmse:.1e}"


def _recommended(found: Comparison, budget: int) -> str:
    """The best by the median, and the best by RMSE where that is another."""
    lines, before = list[str](), None
    for by in BY:
        choice = found.best(budget, by)
        if choice is None:
            least = min(c.evaluations for row in found.rows.values() for c in row.values() if c is not None)
            raise InputError(f"No sampler makes do with {budget} evaluations; the fewest measured are {least}.")
        label, measured = choice
        if choice != before:
            lines.append(
                f"budget {budget}: {label}, the least {_by(by)}: {_error(measured.error)} with {measured.evaluations} "
                f"evaluations\n  sampler={json.dumps(measured.sampler.to_dict())}"
            )
        before = choice
    return "\n".join(lines)


def _by(by: str) -> str:
    return by.replace("rmse", "RMSE")


def _write_csv(found: Comparison, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sampler", "options", "nfe", "evaluations", "median", "rmse"])
        for label, row in found.rows.items():
            for n, cell in row.items():
                if cell is not None:
                    options = json.dumps(cell.sampler.to_dict())
                    writer.writerow([label, options, n, cell.evaluations, cell.error.median, cell.error.rmse])
        writer.writerow(["reference", "", "", found.reference_evaluations, found.floor.median, found.floor.rmse])
