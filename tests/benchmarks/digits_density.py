r"""What helps the density of digits: `digits-density` with one change at a time, on a validation part of train.

Trained on the first 1137 of the train part and judged on its last 300, so that the test part has no say: bits per
dimension by Hutchinson's estimate, 2 dequantisation draws; seconds are of the processor.

    python tests/benchmarks/digits_density.py [--steps 800] [ROW ...]

about two minutes a row on one core. Examples, their noise and the probes are the same in all rows, so that differences
are known better than the standard errors say: another order of the batches moves a row by some 0.007.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from itoflow import DataSpec
from itoflow_data import DataSource, Examples, Split, load_dataset
from itoflow_data.gaussianised import Gaussianised
from itoflow_train.evaluation import Evaluation, evaluate
from itoflow_train.loop import build, fit
from itoflow_train.recipe import read
from itoflow_train.run import Run
from itoflow_train.values import Values

KEPT = 1137
LIKELIHOOD = ["objective.name=dsm", "objective.prediction=velocity", "objective.weighting=likelihood"]
ROWS: dict[str, list[str]] = {
    "recipe": [],
    "uniform dequantisation alone": ["training.dequantise=true"],
    "mlp": ["backbone={name: mlp, width: 512, depth: 4}"],
    "trigonometric": ["process=trigonometric"],
    "vp": ["process=vp"],
    "vp, likelihood weighting": ["process=vp", *LIKELIHOOD, "objective.times=importance"],
    "likelihood weighting": [*LIKELIHOOD, "objective.times=importance"],
    "likelihood weighting, t > 0.01": [
        "process={name: linear, t_min: 0.01}",
        *LIKELIHOOD,
        "objective.times=importance",
    ],
    "logit-normal times": ["objective.times=logit-normal"],
    "trigonometric, logit-normal": ["process=trigonometric", "objective.times=logit-normal"],
}


class Fold(DataSource):
    """The digits of the train part alone, cut once more."""

    @property
    def spec(self) -> DataSpec:
        """That of the digits."""
        return load_dataset("digits").spec

    def load(self, split: Split) -> Examples:
        """The first 1137 as train, the last 300 as test."""
        whole = load_dataset("digits").load("train")
        return whole[:KEPT] if split == "train" else whole[KEPT:]


def trained(changes: list[str], steps: int) -> tuple[dict[Split, Evaluation], float]:
    """The figures of the recipe with changes, and the seconds of training."""
    recipe = read("digits-density", [f"training.steps={steps}", *changes])
    recipe = recipe.replace(data=Fold() if recipe.training.dequantise else Gaussianised(source=Fold()))
    start = time.process_time()
    with TemporaryDirectory() as folder:
        model = fit(recipe, build(recipe), Run.new(Path(folder) / "run"), quiet=True, cpu=True).model
    seconds, values = time.process_time() - start, Values.of(recipe)
    found: dict[Split, Evaluation] = {
        split: evaluate(model, values, values.source.load(split)[:300], draws=2, check=1, divergence="hutchinson")
        for split in ("test", "train")
    }
    return found, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW", help="; ".join(ROWS))
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':<32}{'validation':>19}{'train':>19}{'evaluations':>13}{'seconds':>9}")
    for name in arguments.rows or ROWS:
        found, seconds = trained(ROWS[name], arguments.steps)
        cells = "".join(f"{e.bits.mean:>10.4f} +- {e.bits.error:.4f}" for e in found.values())
        print(f"{name:<32}{cells}{found['test'].evaluations:>13}{seconds:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
