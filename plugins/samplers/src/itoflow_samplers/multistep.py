r"""Multistep methods on the probability-flow ODE: one network evaluation a step, order k from the last k of them.

In a frame the flow is dz = F dw (`itoflow_samplers.frames`). With b_j = n_1 beta_j of its equation (5) a step is

    x_1 = (n_1/n_0) x_0 + sum_j b_j F_j,   j = 0, ..., k - 1, newest first.                            (1)

A polynomial in w itself gives Adams-Bashforth, one in another variable an exponential Adams method. The data frame
with log-SNR is the exact multistep exponential integrator of which DPM-Solver++(2M) is an approximation; the noise
frame with t is DEIS.

The first k - 1 steps lack history. A ramp takes them with what there is, orders 1, 2, ...; for k > 2 that leaves
order 2. Runge-Kutta steps in the same frame keep order k, at 2 evaluations each for k = 2 and 3 for k = 3 and 4: order
k - 1 is enough for a fixed number of steps, whose own errors are of order k. Heun's method of order 3 has b_2 = 0, so
that its third stage takes the slot of its second, and the history needs k slots with either start.

References:
    Solving Ordinary Differential Equations I (Hairer, Norsett and Wanner, 1993), section III.1 and III.5 (variable
    steps).
    Exponential integrators (Hochbruck and Ostermann, 2010), section 2.5, exponential Adams methods.
    Fast Sampling of Diffusion Models with Exponential Integrator (Zhang and Chen, 2022),
    https://arxiv.org/abs/2204.13902, section 3 and equation 15.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from itoflow import GaussianProcess, IncompatibleError, ProcessSpec, Row, Table
from itoflow_samplers.frames import Frame, FrameName, Point, Variable, points
from itoflow_samplers.history import History, spread
from itoflow_samplers.ode import HEUN, HEUN_3, Tableau, runge_kutta_rows
from itoflow_samplers.ordered import OrderedSampler

STARTS: dict[int, Tableau] = {2: HEUN, 3: HEUN_3, 4: HEUN_3}
"""For each order; see above."""


class Multistep(OrderedSampler):
    """Equation (1): the options that all its cases share."""

    order: Annotated[int, Ge(1), Le(4)] | None = None
    """k; None is 3, or as many as the steps."""
    start: Literal["ramp", "runge-kutta"] = "ramp"
    """The first k - 1 steps: with the history there is, or Runge-Kutta steps, 2 evaluations each for k = 2, else 3.

    Either way a run holds k + 3 tensors of the sample's size.
    """

    @property
    @abstractmethod
    def frame(self) -> Frame:
        """The frame that it steps in."""

    @property
    def phi(self) -> Variable:
        """The variable of its polynomials."""
        return "own"

    def table(self, process: ProcessSpec) -> Table:
        """One row a step, and the rows of the start."""
        times, ending = self.times(process)
        order = self.order or min(3, self.steps)
        first = min(order, len(times)) - 1 if self.start == "runge-kutta" else 0
        return Table((*multistep_rows(process, times, self.frame, self.phi, order, first), *ending))


def multistep_rows(
    process: ProcessSpec, times: tuple[float, ...], frame: Frame, variable: Variable, order: int, first: int = 0
) -> list[Row]:
    """Rows of (1) along the times.

    Arguments:
        first: how many steps at the start are Runge-Kutta steps.

    A step from or to a point where the frame is singular holds x0 instead (DDIM), and leaves no history.
    """
    knots, rows = points(process, times), list[Row]()
    history = History(knots)
    for i, (now, after) in enumerate(pairwise(knots)):
        if not (frame.regular(now) and frame.regular(after)):
            rows.append(adams_row(process, Frame("data"), "own", now, after, [now], [0]))
            continue
        history.add(i, len(rows))
        if i < first and order > 1:
            rows += runge_kutta_rows(process, frame, now, after, STARTS[order])
            continue
        rows.append(adams_row(process, frame, variable, now, after, *history.last(order, i, len(rows))))
    return rows


def adams_row(
    process: ProcessSpec,
    frame: Frame,
    variable: Variable,
    now: Point,
    after: Point,
    nodes: list[Point],
    back: list[int],
) -> Row:
    """Equation (1) from `now` to `after`, through values of F at the nodes, newest first, `back` rows ago."""
    out, f, _ = frame.call(now)
    n, weights = frame.scale(after), frame.weights(now, after, nodes, variable, process)
    b = [n * beta * frame.call(at)[2] for at, beta in zip(nodes, weights, strict=True)]
    return Row(now.t, out=out, a=n / frame.scale(now), b=spread(b, back), f=f)


class Adams(Multistep):
    """Adams-Bashforth, variable steps: (1) with polynomials in the frame's own w.

    In the velocity, on any process, w = t; in noise w = sigma / alpha, in data w = alpha / sigma, in v the angle.
    """

    predict: FrameName = "velocity"
    """What F is."""

    @property
    def frame(self) -> Frame:
        """As `predict` says."""
        return Frame(self.predict, self.scale)

    def check(self, process: ProcessSpec) -> None:
        """Noise, data and v exist for Gaussian processes only."""
        super().check(process)
        if self.predict != "velocity" and not isinstance(process, GaussianProcess):
            raise IncompatibleError(
                f"Adams in {self.predict!r} needs a GaussianProcess; {type(process).__name__} is none. "
                "Use predict='velocity'."
            )


class ExponentialAdams(Multistep):
    """(1) in noise, data or v, exact but for F, which is a polynomial in log-SNR, t, or a variable between."""

    requires: ClassVar[type] = GaussianProcess

    predict: Literal["noise", "data", "v"] = "v"
    """What F is."""
    variable: Literal["log-snr", "angle", "asinh", "bounded", "time"] = "bounded"
    """What F is a polynomial in; `angle`, `bounded` and `time` are finite where no signal is left."""

    @property
    def frame(self) -> Frame:
        """As `predict` says."""
        return Frame(self.predict, self.scale)

    @property
    def phi(self) -> Variable:
        """As `variable` says."""
        return self.variable


class DEIS(Multistep):
    """DEIS: noise as a polynomial in t (tAB-DEIS) or in sigma / alpha (rhoAB-DEIS)."""

    requires: ClassVar[type] = GaussianProcess

    variable: Literal["time", "rho"] = "time"
    """t, or the paper's rho = sigma / alpha."""

    @property
    def frame(self) -> Frame:
        """Noise."""
        return Frame("noise")

    @property
    def phi(self) -> Variable:
        """As `variable` says."""
        return "time" if self.variable == "time" else "own"
