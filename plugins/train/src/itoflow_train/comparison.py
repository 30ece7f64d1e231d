r"""The error of samplers per network evaluation (NFE), against a tight solve of the same flow from the same noise.

With x_i what a sampler makes of example i, D values, and y_i what the reference makes of it,

    e_i = sqrt(mean_d (x_id - y_id)^2) / std(y),                                                    (1)

the figures are the median of e_i over the examples and their root mean square (RMSE), which the worst examples decide.
Every evaluation counts. A number of evaluations that a method cannot make is filled as far as it goes: `rk4` takes
5 for 6.

The reference has an error too. It is bounded by that of a looser solve, with ten times the tolerance or half the steps,
against the reference; no error below this floor is resolved.

A sampler that adds noise solves no ODE: from the same start it ends elsewhere each time, and (1) says nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor

from itoflow import IncompatibleError, InputError, NumericalError, OptionError, ProcessSpec, Sampler, TableSampler
from itoflow_train.targets import Target


@dataclass(frozen=True)
class Error:
    """Median and root mean square of (1) over the examples."""

    median: float
    rmse: float

    @classmethod
    def of(cls, x: Tensor, exact: Tensor) -> Error:
        """Of x against exact, both (N, *S)."""
        scale = exact.std(0, unbiased=False).square().mean().sqrt()
        e = (x.double() - exact).flatten(1).square().mean(1).sqrt() / scale
        return cls(float(e.median()), float(e.square().mean().sqrt()))


@dataclass(frozen=True)
class Measured:
    """One sampler at one number of evaluations: how many it made, and its error."""

    sampler: Sampler
    evaluations: int
    error: Error


@dataclass(frozen=True)
class Comparison:
    """All figures.

    Arguments:
        nfe: the columns.
        rows: by the sampler's label, by column; None where it cannot make so few, or failed.
        floor: bound of the reference's error.
        reference_evaluations: of the reference.
        notes: what is missing, and why.
    """

    nfe: tuple[int, ...]
    rows: dict[str, dict[int, Measured | None]]
    floor: Error
    reference_evaluations: int
    notes: tuple[str, ...]

    def best(self, nfe: int, by: Literal["median", "rmse"] = "median") -> tuple[str, Measured] | None:
        """The label and the figures of the least error with at most so many evaluations, the fewest among equals.

        None where none makes so few.
        """
        found = [
            (label, cell)
            for label, row in self.rows.items()
            for cell in row.values()
            if cell is not None and cell.evaluations <= nfe
        ]
        return min(found, key=lambda item: (getattr(item[1].error, by), item[1].evaluations), default=None)


def compare(target: Target, samplers: dict[str, Sampler], nfe: Sequence[int], reference: Sampler) -> Comparison:
    """Measure samplers on a target.

    Arguments:
        samplers: by the label they are shown with.
        nfe: numbers of evaluations, at least 1.

    Raises:
        IncompatibleError: a sampler adds noise, or cannot run on the process.
        InputError: a sampler cannot make as few evaluations as any of `nfe`.
        NumericalError: the reference failed.
    """
    for label, sampler in samplers.items():
        refuse(label, sampler, target.process)
    exact, made = target.solve(reference)
    floor = Error.of(target.solve(looser(reference))[0], exact)
    notes: list[str] = []
    rows = {label: _row(label, sampler, target, nfe, exact, notes) for label, sampler in samplers.items()}
    return Comparison(tuple(nfe), rows, floor, made, tuple(notes))


def refuse(label: str, sampler: Sampler, process: ProcessSpec) -> None:
    """Refuse what has no error of one path.

    Raises:
        IncompatibleError: the sampler cannot run on this process, or adds noise.
    """
    if not isinstance(process, sampler.requires):
        raise IncompatibleError(
            f"Sampler {label} needs a {sampler.requires.__name__}; {type(process).__name__} is none. Leave it out."
        )
    sampler.check(process)
    if sampler.needs_score(process):
        raise IncompatibleError(
            f"Sampler {label} adds noise, so that from the same start it ends elsewhere each time: it has no error "
            "against a solve of the ODE. Leave it out, or set its strength (eta, s_churn) to 0; the law of its samples "
            "is measured by `itoflow train`, against test data."
        )


def _row(
    label: str, sampler: Sampler, target: Target, nfe: Sequence[int], exact: Tensor, notes: list[str]
) -> dict[int, Measured | None]:
    chosen = {most: fitting(sampler, target.process, most) for most in nfe}
    done: dict[Sampler, Measured] = {}
    for most, fitted in chosen.items():
        if fitted is not None and fitted not in done:
            try:
                x, made = target.run(fitted)
            except NumericalError as error:
                notes.append(f"{label} failed for {most} evaluations: {error}")
            else:
                done[fitted] = Measured(fitted, made, Error.of(x, exact))
    row = {most: None if fitted is None else done.get(fitted) for most, fitted in chosen.items()}
    least = (
        fewest(sampler, target.process) if _counted(sampler) else max((m.evaluations for m in done.values()), default=0)
    )
    if least > max(nfe):
        raise InputError(
            f"Sampler {label} takes at least {least} evaluations, and {max(nfe)} is the most that is asked for. "
            "Raise --nfe, or leave it out."
        )
    short = [most for most in nfe if most < least]
    if short:
        notes.append(f"{label} takes at least {least} evaluations: no error at {', '.join(map(str, short))}.")
    return {most: None if most < least else cell for most, cell in row.items()}


def fitting(sampler: Sampler, process: ProcessSpec, most: int) -> Sampler | None:
    """The sampler with as many steps as `most` evaluations allow; None where its fewest steps need more.

    A sampler whose evaluations do not follow from its steps (adaptive, or with times of its own) is left as it is.
    """
    if not _counted(sampler):
        return sampler
    low, high = _fewest_steps(sampler), most  # no step is free
    if low > high or _evaluations(sampler, low, process) > most:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _evaluations(sampler, middle, process) <= most else (low, middle - 1)
    return sampler.with_steps(low)


def fewest(sampler: Sampler, process: ProcessSpec) -> int:
    """The evaluations of its fewest steps."""
    return _evaluations(sampler, _fewest_steps(sampler), process)


def looser(reference: Sampler) -> Sampler:
    """The reference with half the steps, or ten times the tolerance.

    Raises:
        InputError: it has neither steps nor a tolerance.
    """
    options = type(reference).model_fields
    if "steps" in options:
        return reference.with_steps(max(dict(reference)["steps"] // 2, 1))
    given = {name: 10 * getattr(reference, name) for name in ("rtol", "atol") if name in options}
    if not given:
        raise InputError(f"{type(reference).__name__} has neither steps nor a tolerance: it cannot be the reference.")
    return reference.replace(**given)


def _counted(sampler: Sampler) -> bool:
    return isinstance(sampler, TableSampler) and isinstance(sampler.grid, str)


def _evaluations(sampler: Sampler, steps: int, process: ProcessSpec) -> int:
    return len(cast(TableSampler, sampler).with_steps(steps).tabulated(process).rows)


def _fewest_steps(sampler: Sampler) -> int:
    """The fewest that its options allow, e.g. its order."""
    steps = 1
    while True:
        try:
            sampler.with_steps(steps)
        except OptionError:
            if steps == dict(sampler)["steps"]:  # which it has
                raise
            steps += 1
        else:
            return steps
