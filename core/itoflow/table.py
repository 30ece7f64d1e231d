"""An explicit linear sampler is a table, one row per network call.

With carried state u, history h (newest first) and noise z ~ N(0, I), a row does

    v     = p u + sum_j q_j h_j + r z                 what the network is called at                   (1)
    h_new = out(v, t) + f v                           out: x0, eps or velocity of the prediction      (2)
    u    <- a u + sum_j b_j h_j + c z                 b_0 multiplies h_new                            (3)

so that Euler is (b = t_next - t), an inner Runge-Kutta stage is (a = 1, b = 0), Adams-Bashforth has several b, DDIM
an x0 row with a and b, ancestral sampling adds c, churn adds r, and a corrector has both q and b. With f the history
may hold any combination of x0 and eps, up to a factor that b takes. All coefficients are Python floats, computed once
in float64 from the times and the kernel. `itoflow.loop` runs every table.

References:
    On the convergence of numerical solutions to ordinary differential equations (Butcher, 1966), general linear
    methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args

from itoflow.errors import InputError, listing
from itoflow.field import Member

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One network call, equations (1) to (3).

    Arguments:
        t: time of the call.
        out: the member of the prediction that enters the history.
        a, b, c: the update of the carried state; b newest first, b[0] for this call.
        p, q, r: the network's input; q newest first, q[0] for the call before this one.
        eta: strength, for `velocity`: the history gets velocity - eta^2/2 score.
        f: what is added to the history of the network's input.
        clock: the stretch (from, to) of a Brownian motion whose increment, divided by sqrt(to - from), is z: then runs
            of other steps see the same path. None draws z by itself.

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
    f: float = 0.0
    clock: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table:
    """The rows of one sampling run, in order.

    Raises:
        InputError: no rows, a coefficient that is not finite, a history that does not exist yet, times outside
            [0, 1], an `out` that no prediction has, a clock that does not run forwards; names the row.
    """

    rows: tuple[Row, ...]
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError("A sampler's table needs at least one row.")
        reading = 0.0
        for i, row in enumerate(self.rows):
            where = f"Row {i + 1} of {len(self.rows)} (t = {row.t:.6g})"
            if not math.isfinite(sum((row.t, row.a, row.c, row.p, row.r, row.eta, row.f, *row.b, *row.q))):
                raise InputError(f"{where} has a coefficient that is not finite: {row}.")
            if len(row.q) > i or len(row.b) > i + 1:
                raise InputError(f"{where} uses a history that is longer than the calls made: {row}.")
            if not 0 <= row.t <= 1:
                raise InputError(f"{where} is outside [0, 1].")
            if row.out not in get_args(Member):
                raise InputError(f"{where} has out={row.out!r}; it is one of {listing(get_args(Member))}.")
            if row.eta and row.out != "velocity":
                raise InputError(f"{where} has a strength eta, which only 'velocity' takes, with out={row.out!r}.")
            if row.clock is not None:
                if not reading <= row.clock[0] < row.clock[1] < math.inf:
                    raise InputError(f"{where} has the clock {row.clock}, which must run forwards from {reading:.6g}.")
                reading = row.clock[1]

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` computes of these rows, made again only when the key is another than at the last call."""
        found: T | None = self._kept.get(key)
        if found is None:
            found = make()
            self._kept.clear()
            self._kept[key] = found
        return found

    @property
    def depth(self) -> int:
        """How many evaluations the longest row looks back, its own included."""
        return max(max(len(row.b), len(row.q) + 1 if row.q else 0) for row in self.rows)
