"""Which components fit together: who needs what, and which installed components would do."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch

from itoflow import registry
from itoflow.backbone import DataSpec
from itoflow.errors import IncompatibleError, ItoflowError, ItoflowWarning, SpecError, listing
from itoflow.interpolant import InterpolantProcess
from itoflow.objective import Objective, PathObjective
from itoflow.parametrization import Parametrization
from itoflow.process import ALPHA_ZERO, GaussianProcess, ProcessSpec
from itoflow.sampler import Sampler, TableSampler

SINGULAR = 1e-4
"""x and the output y are two directions, (alpha s, sigma) and (a s, b), in units of data (deviation s) and of noise. If
the sine of the angle between them is below this, a prediction counts as unsolvable at t_max."""
SOLVABLE = 5e-3
"""The sine at the t_max that `solvable` lowers to; that of the VP process with beta_max = 20 is 0.0066."""

UNSUITED = 0.1
"""What may be left of the data in the prior, and of noise on the data at t_min, as ratios of standard deviations. At
this ratio the variance that a model leaves out, or has too much of, is a hundredth of the other's."""
CORNER = 0.02
"""On a uniform grid at least this share of the times is to have less noise than data, and at least this share more."""


def check_objective(objective: Objective, process: ProcessSpec) -> None:
    """Refuse a process that the objective cannot learn about.

    Raises:
        IncompatibleError: names who needs what and what would fit.
    """
    if not isinstance(process, objective.requires):
        _refuse("objective", objective, process)
    if isinstance(process, InterpolantProcess) and not isinstance(objective, PathObjective):
        raise IncompatibleError(
            f"{type(process).__name__} joins two data sets, and {type(objective).__name__} takes one. Use an objective "
            "that is a PathObjective, e.g. 'flow-matching', or a process with a prior."
        )


def check_direction(process: ProcessSpec) -> None:
    """Refuse a Gaussian process with more noise on the data at t_min than at t_max.

    Raises:
        SpecError: time runs the other way, as in papers with data at 1.
    """
    if not isinstance(process, GaussianProcess):
        return
    first, last = process.ends()
    if float(first.sigma * last.alpha) > float(last.sigma * first.alpha):
        raise SpecError(
            f"{process!r} has less noise on the data at t_max than at t_min: alpha goes from {float(first.alpha):.3g} "
            f"to {float(last.alpha):.3g}, sigma from {float(first.sigma):.3g} to {float(last.sigma):.3g}. Data is at "
            "t = 0 and noise at t = 1; formulas of a paper with data at 1 take 1 - t for its time."
        )


def solvable(process: ProcessSpec, parametrization: Parametrization) -> ProcessSpec:
    """The process, with t_max lowered where the prediction is singular there, and an `ItoflowWarning`.

    Raises:
        IncompatibleError: the prediction determines nothing on this process.
    """
    if not isinstance(process, GaussianProcess):
        needed = ("velocity",) if isinstance(process, InterpolantProcess) else ("velocity", "score")
        if parametrization.prediction not in needed:
            raise IncompatibleError(
                f"Prediction {parametrization.prediction!r} needs a GaussianProcess; {type(process).__name__} is none. "
                f"Use prediction {' or '.join(map(repr, needed))}."
            )
        return process
    if _sine(process, parametrization, process.t_max) >= SINGULAR:
        return process
    high, halves = process.t_max, [process.t_min + (process.t_max - process.t_min) / 2**i for i in range(1, 40)]
    low = next((t for t in halves if not _sine(process, parametrization, t) < SOLVABLE), None)
    if low is None or _sine(process, parametrization, halves[0]) <= ALPHA_ZERO:
        raise IncompatibleError(
            f"Prediction {parametrization.prediction!r} determines no x0 on {process!r}. Use another, e.g. 'v'."
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sine(process, parametrization, middle) >= SOLVABLE else (low, middle)
    warnings.warn(
        f"Prediction {parametrization.prediction!r} determines no x0 where no signal is left, so t_max of "
        f"{type(process).__name__} is lowered from {process.t_max:g} to {low:.6g}. Prediction 'v' keeps it.",
        ItoflowWarning,
        stacklevel=3,
    )
    return process.replace(t_max=low)


def check_scale(process: ProcessSpec, data: DataSpec) -> None:
    """Warn, by an `ItoflowWarning`, where the noise of a process does not suit the deviation s of the data.

    A prior is to hide the data, alpha s below sigma, and t_min to leave little noise on them, sigma below alpha s, by
    `UNSUITED`; and where the two are equal is not to lie at an end of the time grid, if that is uniform. Between two
    data sets only the noise at t_min, gamma, counts.
    """
    left, clear = 0.0, 0.5
    if isinstance(process, InterpolantProcess):
        start = process.kernel(process.t_min)
        noise = float(start.gamma / start.alpha) / data.std
    elif isinstance(process, GaussianProcess):
        first, last = process.ends()
        left, noise = float(last.alpha) * data.std / process.prior_std(), float(first.sigma / first.alpha) / data.std
        k = process.kernel(torch.linspace(process.t_min, process.t_max, 201, dtype=torch.float64))
        clear = float((k.sigma < k.alpha * data.std).double().mean())
    else:
        return
    if left > UNSUITED:
        wrong = f"at t_max the data are still {left:.2g} times as large as its prior, which knows nothing of them"
    elif noise > UNSUITED:
        wrong = f"at t_min noise {noise:.2g} times as large is left on them, which samples and densities will show"
    elif process.grid == "uniform" and not CORNER <= clear <= 1 - CORNER:
        wrong = f"{max(clear, 1 - clear):.1%} of its time grid has {'less' if clear > 0.5 else 'more'} noise than data"
    else:
        return
    warnings.warn(
        f"{process!r} does not suit data of standard deviation {data.std:g} (`std` of the data spec): {wrong}. Divide "
        "the data by their standard deviation, and subtract their mean, or give the process other noise.",
        ItoflowWarning,
        stacklevel=3,
    )


def check_sampler(sampler: Sampler, process: ProcessSpec, parametrization: Parametrization) -> None:
    """Refuse a process that the sampler cannot run on, or a score that it needs and nobody learns.

    Raises:
        IncompatibleError: names who needs what and what would fit.
        InputError: the sampler's options and this process make no table.
    """
    if not isinstance(process, sampler.requires):
        _refuse("sampler", sampler, process)
    sampler.check(process)
    if isinstance(sampler, TableSampler):
        sampler.tabulated(process, parametrization.data_std)
    if not parametrization.score and sampler.needs_score(process):
        raise IncompatibleError(
            f"Sampler {type(sampler).__name__} adds noise and so needs the score of {type(process).__name__}'s p_t, "
            "which this objective does not give: it learns a velocity alone, or couples the ends. Use a sampler "
            "without noise, e.g. 'heun', or an objective that learns the score."
        )


def _sine(process: GaussianProcess, parametrization: Parametrization, t: float) -> float:
    """|sin| of the angle of `SINGULAR` at t: zero where x and the output determine neither x0 nor eps."""
    k, s = process.kernel(t), parametrization.data_std
    a, b = parametrization.coefficients(k)
    return float(s * parametrization.determinant(k).abs() / (torch.hypot(a * s, b) * torch.hypot(k.alpha * s, k.sigma)))


def _refuse(kind: str, part: Objective | Sampler, process: ProcessSpec) -> None:
    """Name who needs what, and the installed components that would fit either side."""
    needed = part.requires

    def fits(other: str, name: str) -> bool:
        component = registry.registry().find(other, name)
        try:
            loaded = cast(type, component.load())
        except ItoflowError:
            return False
        return issubclass(loaded, needed) if other == "process" else isinstance(process, cast(Any, loaded).requires)

    processes = [name for name in registry.available("process") if fits("process", name)]
    others = [name for name in registry.available(kind) if fits(kind, name)]
    raise IncompatibleError(
        f"{kind.capitalize()} {type(part).__name__} needs a process that is a {needed.__name__}; "
        f"{type(process).__name__} is none. Processes that fit it: {listing(processes)}. "
        f"{kind.capitalize()}s that fit {type(process).__name__}: {listing(others)}."
    )
