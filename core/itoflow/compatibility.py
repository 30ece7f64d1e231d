"""Which components fit together: who needs what, and which installed components would do."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch

from itoflow import registry
from itoflow.errors import IncompatibleError, ItoflowError, ItoflowWarning, listing
from itoflow.interpolant import InterpolantProcess
from itoflow.objective import Objective, PathObjective
from itoflow.parametrization import Parametrization
from itoflow.process import GaussianProcess, ProcessSpec
from itoflow.sampler import Sampler, TableSampler

SINGULAR = 1e-4
"""Below this sine of the angle between (alpha, sigma) and (a, b), a prediction counts as unsolvable at t_max."""
SOLVABLE = 5e-3
"""The sine at the t_max that `solvable` lowers to; that of the VP process with beta_max = 20 is 0.0066."""


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
    low, high = process.t_min, process.t_max
    if _sine(process, parametrization, (low + high) / 2) < SOLVABLE:
        raise IncompatibleError(
            f"Prediction {parametrization.prediction!r} determines no x0 on {process!r}. Use another, e.g. 'v'."
        )
    low = (low + high) / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sine(process, parametrization, middle) >= SOLVABLE else (low, middle)
    warnings.warn(
        f"Prediction {parametrization.prediction!r} determines no x0 where alpha = 0, so t_max of "
        f"{type(process).__name__} is lowered from {process.t_max:g} to {low:.6g}. Prediction 'v' keeps it.",
        ItoflowWarning,
        stacklevel=3,
    )
    return process.replace(t_max=low)


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
        sampler.tabulated(process)
    if not parametrization.score and sampler.needs_score(process):
        raise IncompatibleError(
            f"Sampler {type(sampler).__name__} adds noise and so needs the score of {type(process).__name__}'s p_t, "
            "which this objective does not give: it learns a velocity alone, or couples the ends. Use a sampler "
            "without noise, e.g. 'heun', or an objective that learns the score."
        )


def _sine(process: GaussianProcess, parametrization: Parametrization, t: float) -> float:
    """|sin| of the angle between (alpha, sigma) and (a, b) at t: zero where they determine neither x0 nor eps."""
    k = process.kernel(t)
    a, b = parametrization.coefficients(k)
    return float(parametrization.determinant(k).abs() / (torch.hypot(a, b) * torch.hypot(k.alpha, k.sigma)))


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
