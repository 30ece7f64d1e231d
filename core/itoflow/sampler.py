"""Samplers carry x from the prior at t_max to data at t_min.

An explicit linear one is a table (`itoflow.table`), a function of the process, and one loop (`itoflow.loop`) runs them
all. Time grids (`itoflow.grids`) are an option of every such sampler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Gt
from pydantic import FiniteFloat
from torch import Tensor

from itoflow.errors import IncompatibleError, InputError, OptionError, SpecError
from itoflow.field import Field
from itoflow.grids import custom_grid, optimal_reaches, time_grid
from itoflow.loop import Callback, check_call, run_table
from itoflow.noise import Generators
from itoflow.process import GaussianProcess, GridName, ProcessSpec
from itoflow.spec import Spec
from itoflow.table import Row, Table

GridOption = Literal["auto"] | GridName | tuple[float, ...]
"""The process's own grid (`auto`), a named one, or the times themselves, decreasing."""


class Sampler(Spec, ABC):
    """Options of a sampler; called, it carries x from t_max to data.

    `requires` is the class that the process must derive from; `compose` refuses any other.
    """

    kind: ClassVar[str] = "sampler"
    requires: ClassVar[type] = ProcessSpec

    @abstractmethod
    def __call__(
        self,
        field: Field,
        x: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """x at data time from x at prior time, both (B, *S), data units.

        Arguments:
            generator: one for the batch, or one per sample, which makes a sample independent of its batch.
            callback: called after every network call.

        Raises:
            IncompatibleError: the process is not what the sampler requires.
            NumericalError: the state became non-finite; names sampler, time and step.
        """

    def check_call(self, field: Field, x: Tensor, callback: Callback | None = None) -> None:
        """Refuse what this sampler cannot be called with: the first line of every `__call__`.

        Raises:
            InputError: field, x or callback is not what it should be.
            IncompatibleError: says which class of process the sampler needs.
        """
        check_call(field, x, callback)
        self.check(field.process)

    def check(self, process: ProcessSpec) -> None:
        """Refuse a process that this sampler cannot run on.

        Raises:
            IncompatibleError: says which class the sampler needs.
        """
        if not isinstance(process, self.requires):
            raise IncompatibleError(
                f"Sampler {type(self).__name__} needs a {self.requires.__name__}; {type(process).__name__} is none."
            )

    def starts_at(self, process: ProcessSpec) -> float:
        """The time of the x that a run starts from: t_max, unless the user's own times start later."""
        return process.t_max

    def needs_score(self, process: ProcessSpec) -> bool:
        """Whether it uses the score, as all that add noise do; `compose` refuses it where none is known."""
        return False

    def with_steps(self, steps: int) -> Self:
        """This sampler with another number of time steps.

        Raises:
            InputError: the sampler has no number of steps.
            OptionError: `steps` is out of range.
        """
        if "steps" not in type(self).model_fields:
            raise InputError(f"Sampler {type(self).__name__} has no number of steps; leave `steps` out.")
        if isinstance(steps, bool):
            raise OptionError(f"{type(self).__name__}: steps: needs a whole number (given: {steps}).")
        return self.replace(steps=steps)


class TableSampler(Sampler):
    """A sampler that is a table: a subclass writes `table`, and `run_table` is its loop."""

    steps: Annotated[int, Ge(1)] = 50
    """Number of time steps."""
    grid: GridOption = "auto"
    """Time grid: the process's own (`auto`), a named one, or the times themselves, decreasing."""
    rho: Annotated[FiniteFloat, Gt(0)] = 7.0
    """Exponent of the grid `karras`."""
    data_std: Annotated[FiniteFloat, Gt(0)] | None = None
    """Standard deviation of the data, data units, the scale of the grid `optimal`; None is what the field says, or 1
    for a table by itself."""
    denoise: bool = True
    """End with x0 of the last call, which removes the noise that is left at t_min."""
    compile: bool = False
    """Run each step, network and update, as one function compiled by torch; see `itoflow.compiled`."""

    @abstractmethod
    def table(self, process: ProcessSpec) -> Table:
        """All rows for this process, coefficients in float64."""

    def tabulated(self, process: ProcessSpec, data_std: float | None = None) -> Table:
        """`table`, made once: it depends on options alone, and a model draws many batches by the same one.

        Arguments:
            data_std: what the field says, for an option `data_std` of None.
        """
        return _tabulated(self, process, data_std)

    @property
    def scale(self) -> float:
        """`data_std`, or 1 where it is None."""
        return 1.0 if self.data_std is None else self.data_std

    def starts_at(self, process: ProcessSpec) -> float:
        """The first of the user's own times, or t_max."""
        return self.grid[0] if isinstance(self.grid, tuple) and self.grid else process.t_max

    def needs_score(self, process: ProcessSpec) -> bool:
        """Whether a row adds noise, or has a strength."""
        return any(row.eta or row.c or row.r for row in self.tabulated(process).rows)

    def times(self, process: ProcessSpec) -> tuple[tuple[float, ...], tuple[Row, ...]]:
        """The times of the steps, from t_max downwards, and the rows that end the run.

        `steps` steps in all. With denoising, and wherever no noise is left at the grid's end (t_min, or the last of the
        user's own times), the last one goes from the last time to the data by the x0 row, and the times before it give
        steps - 1 steps. They end at the grid's end if that has noise to remove, at the last time but one of a grid that
        is `open_ended`. Without, they end at the grid's end, and the ending is empty.
        """
        gaussian = isinstance(process, GaussianProcess)
        last = self.grid[-1] if isinstance(self.grid, tuple) and self.grid else process.t_min
        clean = isinstance(process, GaussianProcess) and float(process.kernel(last).sigma) == 0
        open_end = gaussian and (clean or (self.denoise and self.open_ended(process)))
        knots = self.steps + (0 if self.denoise and gaussian and not open_end else 1)
        times = self.grid_times(process, knots)
        if open_end:
            times = times[:-1]
        if gaussian and (self.denoise or clean):
            return times, (Row(t=times[-1], out="x0", a=0.0, b=(1.0,)),)
        return times, ()

    def open_ended(self, process: ProcessSpec) -> bool:
        """Whether the final step to the data starts at the grid's last time but one instead of at t_min."""
        if self.grid != "optimal" or not isinstance(process, GaussianProcess):
            return False
        return not optimal_reaches(process, self.steps, self.scale)

    def grid_times(self, process: ProcessSpec, knots: int) -> tuple[float, ...]:
        """So many times of the grid, from t_max down to t_min."""
        if isinstance(self.grid, tuple):
            return custom_grid(process, self.grid, knots, self.steps)
        grid = process.grid if self.grid == "auto" else self.grid
        return time_grid(process, grid, knots, rho=self.rho, data_std=self.scale)

    @torch.no_grad()
    def __call__(
        self,
        field: Field,
        x: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """x at data time: the table of the field's process, run by `itoflow.loop.run_table`."""
        self.check_call(field, x, callback)
        table = self.tabulated(field.process, field.data_std)
        name = type(self).__name__
        return run_table(table, field, x, cond, generator=generator, callback=callback, name=name, compile=self.compile)


@lru_cache(maxsize=128)
def _tabulated(sampler: TableSampler, process: ProcessSpec, data_std: float | None) -> Table:
    if sampler.data_std is None and data_std:  # data at one point have none
        sampler = sampler.replace(data_std=data_std)
    table = sampler.table(process)
    if not isinstance(table, Table):
        raise SpecError(
            f"{type(sampler).__name__}.table gives an itoflow.Table of rows. Given: {type(table).__name__}."
        )
    return table
