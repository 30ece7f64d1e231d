r"""Runge-Kutta methods on the probability-flow ODE dx/dt = velocity(x, t), from t_max down to t_min.

With h = t_next - t < 0 and a tableau (c, A, b) of m stages:

    k_i = v(x + h sum_j A_ij k_j, t + c_i h),   x <- x + h sum_i b_i k_i                        (1)

    Euler     order 1   k_1
    Heun      order 2   (k_1 + k_2) / 2,                   c = 0, 1
    midpoint  order 2   k_2,                               c = 0, 1/2
    Heun 3    order 3   (k_1 + 3 k_3) / 4,                 c = 0, 1/3, 2/3
    rk4       order 4   (k_1 + 2 k_2 + 2 k_3 + k_4) / 6,   c = 0, 1/2, 1/2, 1

Heun and Heun 3 run in every frame dz = F dw (`itoflow_samplers.frames`), as starts of multistep methods.

References:
    Solving Ordinary Differential Equations I (Hairer, Norsett and Wanner, 1993), section II.1.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, algorithm 1, for Heun.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from itoflow import ProcessSpec, Row, Table, TableSampler
from itoflow_samplers.frames import Frame, Point, points


@dataclass(frozen=True)
class Tableau:
    """Of Butcher: c, the rows of A below the diagonal, b."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


EULER = Tableau((0.0,), ((),), (1.0,))
HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
MIDPOINT = Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0))
HEUN_3 = Tableau((0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (0.25, 0.0, 0.75))
RK4_TABLEAU = Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def runge_kutta_rows(process: ProcessSpec, frame: Frame, now: Point, after: Point, tableau: Tableau) -> list[Row]:
    """Equation (1) in a frame from `now` to `after`: one row a stage, the last of which moves the state."""
    w, h = frame.w(now), frame.w(after) - frame.w(now)
    inner = [frame.time(w + c * h, process) if 0 < c < 1 else 0.0 for c in tableau.c]
    between = [Point(t) for t in inner] if frame.name == "velocity" else points(process, inner)
    stages = [{0.0: now, 1.0: after}.get(c, at) for c, at in zip(tableau.c, between, strict=True)]
    calls, rows = [frame.call(at) for at in stages], list[Row]()
    for i, (at, inputs, (out, f, _)) in enumerate(zip(stages, tableau.a, calls, strict=True)):
        p = frame.scale(at) / frame.scale(now)
        q = [frame.scale(at) * h * inputs[j] * calls[j][2] for j in reversed(range(i))]
        rows.append(Row(at.t, out=out, p=p, q=tuple(q), f=f))
    last, n = rows[-1], frame.scale(after)
    b = tuple(n * h * tableau.b[j] * calls[j][2] for j in reversed(range(len(rows))))
    rows[-1] = Row(last.t, out=last.out, a=n / frame.scale(now), b=b, p=last.p, q=last.q, f=last.f)
    return rows


class RungeKutta(TableSampler):
    """Equation (1) with the tableau of a subclass."""

    tableau: ClassVar[Tableau]

    def table(self, process: ProcessSpec) -> Table:
        """One row a stage, and the ending."""
        times, ending = self.times(process)
        steps = pairwise(points(process, times))
        rows = [
            row
            for now, after in steps
            for row in runge_kutta_rows(process, Frame("velocity"), now, after, self.tableau)
        ]
        return Table((*rows, *ending))


class Euler(RungeKutta):
    """One network evaluation a step; order 1."""

    tableau: ClassVar[Tableau] = EULER


class Heun(RungeKutta):
    """Two network evaluations a step, one in the denoising step: 2 steps - 1 in all; order 2."""

    tableau: ClassVar[Tableau] = HEUN


class Midpoint(RungeKutta):
    """Two network evaluations a step, one in the denoising step: 2 steps - 1 in all; order 2."""

    tableau: ClassVar[Tableau] = MIDPOINT


class RK4(RungeKutta):
    """Four network evaluations a step, one in the denoising step: 4 steps - 3 in all; order 4."""

    tableau: ClassVar[Tableau] = RK4_TABLEAU
