"""Samplers carry x from the prior at t_max to data at t_min.

An explicit linear one is a table (`itoflow.table`), a function of the process, and one loop (`itoflow.loop`) runs them
all. Time grids are an option of every such sampler.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, equation 5 for the grid `karras`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from itoflow.errors import IncompatibleError, InputError
from itoflow.field import Field
from itoflow.loop import Callback as Callback
from itoflow.loop import Step as Step
from itoflow.loop import run_table
from itoflow.noise import Generators
from itoflow.process import GaussianProcess, GridName, ProcessSpec
from itoflow.spec import Spec
from itoflow.table import Row, Table

_LOG_SNR_LIMIT = 20.0
"""Grids in the log signal-to-noise ratio clip it to +-20 where an end of the process has an infinite one."""


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

    def check(self, process: ProcessSpec) -> None:
        """Refuse a process that this sampler cannot run on.

        Raises:
            IncompatibleError: says which class the sampler needs.
        """
        if not isinstance(process, self.requires):
            raise IncompatibleError(
                f"Sampler {type(self).__name__} needs a {self.requires.__name__}; {type(process).__name__} is none."
            )

    def with_steps(self, steps: int) -> Self:
        """This sampler with another number of time steps.

        Raises:
            InputError: the sampler has no number of steps.
            OptionError: `steps` is out of range.
        """
        if "steps" not in type(self).model_fields:
            raise InputError(f"Sampler {type(self).__name__} has no number of steps; leave `steps` out.")
        return self.replace(steps=steps)


class TableSampler(Sampler):
    """A sampler that is a table: a subclass writes `table`, and `run_table` is its loop."""

    steps: Annotated[int, Ge(1)] = 50
    """Number of time steps."""
    grid: Literal["auto"] | GridName | tuple[float, ...] = "auto"
    """Time grid: the process's own (`auto`), a named one, or the times themselves, decreasing."""
    rho: Annotated[float, Gt(0)] = 7.0
    """Exponent of the grid `karras`."""
    denoise: bool = True
    """End with x0 of the last call, which removes the noise that is left at t_min."""

    @abstractmethod
    def table(self, process: ProcessSpec) -> Table:
        """All rows for this process, coefficients in float64."""

    def times(self, process: ProcessSpec) -> tuple[tuple[float, ...], tuple[Row, ...]]:
        """The times of the steps, from t_max downwards, and the rows that end the run.

        `steps` steps in all. With denoising, and wherever sigma(t_min) = 0, the last one goes from the last time to
        the data by the x0 row, and the times before it give steps - 1 steps. Without, the times end at t_min and the
        ending is empty.
        """
        gaussian = isinstance(process, GaussianProcess)
        clean = isinstance(process, GaussianProcess) and float(process.ends()[0].sigma) == 0
        knots = self.steps + (0 if self.denoise and gaussian and not clean else 1)
        times = self._grid(process, knots)
        if clean:
            times = times[:-1]
        if gaussian and (self.denoise or clean):
            return times, (Row(t=times[-1], out="x0", a=0.0, b=(1.0,)),)
        return times, ()

    def _grid(self, process: ProcessSpec, knots: int) -> tuple[float, ...]:
        if isinstance(self.grid, tuple):
            return custom_grid(process, self.grid, knots)
        return time_grid(process, process.grid if self.grid == "auto" else self.grid, knots, rho=self.rho)

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
        self.check(field.process)
        table = _tabulated(self, field.process)
        return run_table(table, field, x, cond, generator=generator, callback=callback, name=type(self).__name__)


@lru_cache(maxsize=32)
def _tabulated(sampler: TableSampler, process: ProcessSpec) -> Table:
    """Tables are data that depend on options alone, and a model draws many batches by the same one."""
    return sampler.table(process)


def time_grid(process: ProcessSpec, grid: GridName, knots: int, *, rho: float = 7.0) -> tuple[float, ...]:
    """`knots` times from t_max down to t_min, strictly decreasing, float64; one knot is t_max alone.

    `uniform` in t; `quadratic` in sqrt(t); `log-snr` uniform in lambda(t); `karras` uniform in (sigma/alpha)^(1/rho).

    Raises:
        InputError: fewer than one knot, or knots that coincide in float64.
        IncompatibleError: a grid in the signal-to-noise ratio on a process that has none.
    """
    if knots < 1:
        raise InputError(f"A time grid needs at least one time. Given: {knots}.")
    if knots == 1:
        return (process.t_max,)
    unit = torch.linspace(0, 1, knots, dtype=torch.float64)
    if grid in ("uniform", "quadratic"):
        power = 1.0 if grid == "uniform" else 2.0
        start, end = process.t_max ** (1 / power), process.t_min ** (1 / power)
        t = (start + unit * (end - start)) ** power
    else:
        if not isinstance(process, GaussianProcess):
            raise IncompatibleError(
                f"Grid {grid!r} needs the signal-to-noise ratio of a GaussianProcess; {type(process).__name__} has "
                "none. Use 'uniform', 'quadratic', or times of your own."
            )
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        start, end = process.log_snr(ends).clamp(-_LOG_SNR_LIMIT, _LOG_SNR_LIMIT).tolist()
        if grid == "log-snr":
            log_snr = start + unit * (end - start)
        else:
            low, high = math.exp(-end / 2 / rho), math.exp(-start / 2 / rho)
            log_snr = -2 * rho * (high + unit * (low - high)).log()
        t = process.log_snr_inverse(log_snr)
    times = [float(value) for value in t]
    times[0], times[-1] = process.t_max, process.t_min
    return _decreasing(tuple(times))


def custom_grid(process: ProcessSpec, times: tuple[float, ...], knots: int) -> tuple[float, ...]:
    """The user's own times, checked against the process and the number of steps.

    Raises:
        InputError: the wrong number of times, not decreasing, or outside [t_min, t_max].
    """
    if len(times) != knots:
        raise InputError(
            f"This sampler and process need {knots} times in `grid`, {len(times)} are given. "
            "Set `steps` to match: one step per time, and without denoising one more time than steps."
        )
    if times[0] > process.t_max or times[-1] < process.t_min:
        raise InputError(
            f"Times {times[0]:g} to {times[-1]:g} leave the process's [{process.t_min:g}, {process.t_max:g}]."
        )
    return _decreasing(times)


def _decreasing(times: tuple[float, ...]) -> tuple[float, ...]:
    for i, (now, after) in enumerate(pairwise(times)):
        if not after < now:
            raise InputError(f"Times must decrease strictly: time {i + 2} is {after!r} after {now!r}. Use fewer steps.")
    return times
