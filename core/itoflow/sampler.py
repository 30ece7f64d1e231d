"""Samplers carry x from the prior at t_max to data at t_min. An explicit linear one is a table.

A table has one row per network call. With carried state u, history h (newest first) and fresh noise z ~ N(0, I), a
row does

    h_new = out(p u + sum_j q_j h_j + r z, t)         out: x0, eps or velocity of the prediction      (1)
    u    <- a u + sum_j b_j h_j + c z                 b_0 multiplies h_new                            (2)

so that Euler is (b = t_next - t), an inner Runge-Kutta stage is (a = 1, b = 0), Adams-Bashforth has several b, DDIM
an x0 row with a and b, ancestral sampling adds c, churn adds r, and a corrector has both q and b. All coefficients are
Python floats, computed once in float64 from the times and the kernel. A sampler is a function from a process to a
table; one loop runs them all.

References:
    On the convergence of numerical solutions to ordinary differential equations (Butcher, 1966), general linear
    methods.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, equation 5 for the grid `karras`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from itoflow.errors import IncompatibleError, InputError, NumericalError, UndefinedError
from itoflow.field import Field, GaussianPrediction, Member, Plan
from itoflow.noise import Generators, normal, restore, states
from itoflow.process import ALPHA_ZERO, GaussianProcess, GridName, ProcessSpec
from itoflow.spec import Spec

_LOG_SNR_LIMIT = 20.0
"""Grids in the log signal-to-noise ratio clip it to +-20 where an end of the process has an infinite one."""


@dataclass(frozen=True, slots=True)
class Row:
    """One network call, equations (1) and (2).

    Arguments:
        t: time of the call.
        out: the member of the prediction that enters the history.
        a, b, c: the update of the carried state; b newest first, b[0] for this call.
        p, q, r: the network's input; q newest first, q[0] for the call before this one.
        eta: strength, for `velocity`: the history gets velocity - eta^2/2 score.

    r and c multiply the same z.
    """

    t: float
    out: Member = "velocity"
    a: float = 1.0
    b: tuple[float, ...] = ()
    c: float = 0.0
    p: float = 1.0
    q: tuple[float, ...] = ()
    r: float = 0.0
    eta: float = 0.0


@dataclass(frozen=True)
class Table:
    """The rows of one sampling run, in order.

    Raises:
        InputError: no rows, a coefficient that is not finite, a history that does not exist yet, times outside
            [0, 1]; names the row.
    """

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError("A sampler's table needs at least one row.")
        for i, row in enumerate(self.rows):
            where = f"Row {i + 1} of {len(self.rows)} (t = {row.t:.6g})"
            if not all(map(math.isfinite, (row.t, row.a, row.c, row.p, row.r, row.eta, *row.b, *row.q))):
                raise InputError(f"{where} has a coefficient that is not finite: {row}.")
            if len(row.q) > i or len(row.b) > i + 1:
                raise InputError(f"{where} uses a history that is longer than the calls made: {row}.")
            if not 0 <= row.t <= 1:
                raise InputError(f"{where} is outside [0, 1].")
            if row.eta and row.out != "velocity":
                raise InputError(f"{where} has a strength eta, which only 'velocity' takes, with out={row.out!r}.")

    @property
    def depth(self) -> int:
        """How many evaluations the longest row looks back, its own included."""
        return max(max(len(row.b), len(row.q) + 1 if row.q else 0) for row in self.rows)


@dataclass(frozen=True)
class Step:
    """What a callback sees after each network call.

    Arguments:
        index: of the call, from 0, of `calls` in all (None where a sampler cannot know).
        t: time of the call.
        x: the carried state after the call, (B, *S), data units.
        estimate: gives the current estimate of x0; see `x0`.
    """

    index: int
    calls: int | None
    t: float
    x: Tensor
    estimate: Callable[[], Tensor]

    @property
    def x0(self) -> Tensor:
        """E[x0 | x_t] at the network's input of this call, (B, *S).

        Raises:
            UndefinedError: the process is not Gaussian, or the call gave eps where alpha = 0.
        """
        return self.estimate()


Callback = Callable[[Step], None]


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

    def needs_score(self, process: ProcessSpec) -> bool:
        """Whether a row adds noise, or has a strength."""
        return any(row.eta or row.c or row.r for row in self.table(process).rows)

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
        """x at data time: the table of the field's process, run by `run_table`."""
        self.check(field.process)
        table = self.table(field.process)
        return run_table(table, field, x, cond, generator=generator, callback=callback, name=type(self).__name__)


def run_table(
    table: Table,
    field: Field,
    x: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    *,
    generator: Generators = None,
    callback: Callback | None = None,
    name: str = "table",
) -> Tensor:
    """Run every row: equations (1) and (2), from u = x (B, *S).

    Arguments:
        name: of the sampler, for errors.

    Raises:
        NumericalError: the result is not finite. The run is repeated, with the noise wound back, to find the step.
    """
    start = states(generator, x)
    u = _run(table, field, x, cond, generator, callback)
    if not bool(torch.isfinite(u).all()):
        restore(generator, x, start)
        _run(table, field, x, cond, generator, _raise_at_first(name))
        raise NumericalError(f"Sampler {name} ended with values that are not finite; a second run did not.")
    return u


def _run(
    table: Table,
    field: Field,
    x: Tensor,
    cond: Mapping[str, Tensor] | None,
    generator: Generators,
    callback: Callback | None,
) -> Tensor:
    plan = field.plan(table.rows, x, cond)
    u, history = x, deque[Tensor](maxlen=table.depth or 1)
    for i, row in enumerate(table.rows):
        z = normal(x.shape, like=x, generator=generator) if row.r or row.c else None
        v = _combine(u, row.p, (*zip(row.q, history, strict=False), (row.r, z)))
        y = plan.output(i, v)
        if table.depth > 1:
            history.appendleft(plan.value(i, v, y))
            u = _combine(u, row.a, (*zip(row.b, history, strict=False), (row.c, z)))
        else:  # (1) put into (2): h_new is never needed by itself
            b = row.b[0] if row.b else 0.0
            on_v, on_y = b * plan.m_x[i], b * plan.m_y[i]
            u = _combine(u, row.a + on_v * row.p, ((on_y, y), (row.c + on_v * row.r, z)))
        if callback is not None:
            callback(Step(i, len(table.rows), row.t, u, _estimate(plan, i, field, row, v, y)))
    return u


def _combine(u: Tensor, scale: float, weighted: Sequence[tuple[float, Tensor | None]]) -> Tensor:
    """scale u + the weighted terms, in a new tensor unless nothing changes."""
    terms = [(w, h) for w, h in weighted if w and h is not None]
    if not terms:
        return u if scale == 1 else u * scale
    (w, h), *rest = terms
    if scale == 0:
        total = h * w
    elif scale == 1:
        total = torch.add(u, h, alpha=w)
    else:
        total = (u * scale).add_(h, alpha=w)
    for w, h in rest:
        total.add_(h, alpha=w)
    return total


def _estimate(plan: Plan, i: int, field: Field, row: Row, v: Tensor, y: Tensor) -> Callable[[], Tensor]:
    return lambda: x0_estimate(field, row, v, plan.value(i, v, y))


def x0_estimate(field: Field, row: Row, v: Tensor, h: Tensor) -> Tensor:
    """x0 from the network's input v and what it gave for a row, without another call: (B, *S).

    Raises:
        UndefinedError: the process is not Gaussian, or the row gives eps where alpha = 0.
    """
    if row.out == "x0":
        return h
    if not isinstance(field.process, GaussianProcess):
        raise UndefinedError(f"{type(field.process).__name__} is not Gaussian, so the velocity determines no x0.")
    k = field.process.kernel(row.t)
    if row.out == "eps":
        if float(k.alpha) <= ALPHA_ZERO:
            raise UndefinedError(f"At t = {row.t:g} no signal is left (alpha = 0), so eps determines no x0.")
        a, b = torch.zeros_like(k.alpha), torch.ones_like(k.alpha)
    else:
        langevin = row.eta**2 / (2 * k.sigma) if row.eta else torch.zeros_like(k.sigma)
        a, b = k.d_alpha, k.d_sigma + langevin
    return GaussianPrediction(v, h, k, a, b).x0


def _raise_at_first(name: str) -> Callback:
    def check(step: Step) -> None:
        if not bool(torch.isfinite(step.x).all()):
            raise NumericalError(
                f"Sampler {name} got values that are not finite at step {step.index + 1} of {step.calls}, "
                f"t = {step.t:.6g}. The network's output there is not finite, or its scale is beyond this dtype."
            )

    return check


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
