r"""Quality of samples, against test data that the model never saw.

Energy distance between samples X and test data Y (V-statistic, Euclidean norm, all pairs):

    E(X, Y) = 2 mean|x - y| - mean|x - x'| - mean|y - y'|  >=  0,

zero only for equal laws. It is reported over its floor, the mean distance of as many training examples to the same test
data: 1 is as good as real data, and the ratio does not depend on the scale of the values. Discrete data are compared
at their levels.

Copying: the median distance of a sample to its nearest training example, over the same median for test examples.
Well below 1 says that training examples are copied.

The judge: a support-vector classifier, fitted to the training examples, says whether a class-conditional sample is of
the class that was asked for.

References:
    Energy statistics: A class of statistics based on distances (Szekely and Rizzo, 2013).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itoflow import DataSpec, InputError
from itoflow_data import Examples
from itoflow_train.recipe import ReportOptions


def energy_distance(x: Tensor, y: Tensor) -> float:
    """E(X, Y) for x (N, *S) and y (M, *S), data units."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    between, within_x, within_y = (torch.cdist(a, b).mean() for a, b in ((x, y), (x, x), (y, y)))
    return float(2 * between - within_x - within_y)


def at_levels(x: Tensor, data: DataSpec) -> Tensor:
    """Discrete data rounded to its levels and clipped to its range; continuous data as they are."""
    if data.levels is None:
        return x
    step = (data.high - data.low) / (data.levels - 1)
    return data.low + step * ((x - data.low) / step).round().clamp(0, data.levels - 1)


def nearest(x: Tensor, y: Tensor) -> Tensor:
    """The distance of each x (N, *S) to its nearest y (M, *S): (N,), data units."""
    y = y.flatten(1).double()
    return torch.cat([torch.cdist(part, y).amin(1) for part in x.flatten(1).double().split(256)])


class Judge:
    """A support-vector classifier of examples, fitted to the training examples.

    Raises:
        InputError: the examples have no classes.
    """

    def __init__(self, train: Examples, test: Examples) -> None:
        from sklearn.svm import SVC

        if "class" not in train.cond:
            raise InputError("report.judge needs data with classes, e.g. data.labels=true.")
        self._classifier = SVC(C=10.0).fit(_rows(train.x), train.cond["class"].numpy())
        self.accuracy = float((self(test.x) == test.cond["class"]).double().mean())

    def __call__(self, x: Tensor) -> Tensor:
        """The class of each example: (N,)."""
        return torch.from_numpy(self._classifier.predict(_rows(x)))


@dataclass(frozen=True)
class Quality:
    """The figures of a report.

    Arguments:
        size: of the sets that are compared: `samples` of the report, or as many as there are.
        floor: energy distance of real data to real data, data units.
        energy: of the model's samples, over the floor.
        copying: nearest-neighbour ratio.
        evaluations: of the network, per sample.
        samples_per_second: of the sampler.
        gaussian, mixture: of samples from a full-covariance Gaussian, and from a mixture of ten, over the floor.
        judge_accuracy, agreement, worst_agreement: of the judge on test data, on all samples, in the worst class.
    """

    size: int
    floor: float
    energy: float
    copying: float
    evaluations: int
    samples_per_second: float
    gaussian: float | None = None
    mixture: float | None = None
    judge_accuracy: float | None = None
    agreement: float | None = None
    worst_agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return asdict(self)


def measure(
    data: DataSpec,
    train: Examples,
    test: Examples,
    options: ReportOptions,
    draw: Callable[[int, Tensor | None], Tensor],
    *,
    evaluations: int,
    samples_per_second: float,
    seed: int,
) -> Quality:
    """All figures of one model.

    Arguments:
        data: of train, test and the samples.
        draw: gives n samples, of the classes asked for where the model is conditional.
        evaluations, samples_per_second: passed on to the report.
        seed: of the choices made here.
    """
    size = min(options.samples, len(test), len(train))
    real = test.x[:size]
    rng = np.random.default_rng(seed)

    def over_floor(sets: list[Tensor]) -> float:
        return float(np.mean([energy_distance(at_levels(x, data), real) for x in sets])) / floor

    choices = [torch.from_numpy(rng.permutation(len(train))[:size]) for _ in range(options.floor_draws)]
    floor = float(np.mean([energy_distance(train.x[chosen], real) for chosen in choices]))
    judged: dict[str, float] = {}
    if options.judge:
        x, judged = _judged(train, test, data, options, draw)
        sets = [x[torch.from_numpy(rng.permutation(len(x))[:size])] for _ in range(options.sets)]
    else:
        labels = train.cond.get("class")
        asked = [
            None if labels is None else labels[torch.from_numpy(rng.permutation(len(train))[:size])]
        ] * options.sets
        sets = [draw(size, classes) for classes in asked]
    distances = nearest(at_levels(torch.cat(sets), data), train.x).median() / nearest(real, train.x).median()
    return Quality(
        size=size,
        floor=floor,
        energy=over_floor(sets),
        gaussian=over_floor(_mixture_sets(train, size, options.sets, 1)) if options.baselines else None,
        mixture=over_floor(_mixture_sets(train, size, options.sets, 10)) if options.baselines else None,
        copying=float(distances),
        evaluations=evaluations,
        samples_per_second=samples_per_second,
        **judged,
    )


def _judged(
    train: Examples,
    test: Examples,
    data: DataSpec,
    options: ReportOptions,
    draw: Callable[[int, Tensor | None], Tensor],
) -> tuple[Tensor, dict[str, float]]:
    """Samples of every class in equal number, and what the judge says of them."""
    judge = Judge(train, test)
    classes = data.classes or 1
    asked = torch.arange(options.judge_samples) % classes
    x = draw(len(asked), asked)
    right = (judge(at_levels(x, data)) == asked).double()
    each = [float(right[asked == label].mean()) for label in asked.unique()]
    return x, {"judge_accuracy": judge.accuracy, "agreement": float(right.mean()), "worst_agreement": min(each)}


def _mixture_sets(train: Examples, size: int, sets: int, components: int) -> list[Tensor]:
    """Samples of a full-covariance Gaussian mixture fitted to the training examples."""
    from sklearn.mixture import GaussianMixture

    given = _rows(train.x)
    fitted = GaussianMixture(min(components, len(given)), random_state=0, reg_covar=1e-6 * float(given.var())).fit(
        given
    )
    rows = fitted.sample(size * sets)[0]
    order = np.random.default_rng(0).permutation(len(rows))  # sklearn returns them sorted by component
    return list(torch.from_numpy(rows[order]).reshape(sets, size, *train.x.shape[1:]))


def _rows(x: Tensor) -> Any:
    return x.flatten(1).double().cpu().numpy()
