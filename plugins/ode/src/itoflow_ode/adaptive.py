r"""Runge-Kutta methods that choose their steps, by torchdiffeq, on any drift and in either direction of time.

A step from x to y is accepted when, with e the difference of the two embedded solutions,

    |e_bi| <= atol + rtol max(|x_bi|, |y_bi|)   for every value i of every example b                (norm `max`)

or for the root mean square over i of the ratio of the two sides (`rms`). Either way the worst example decides, so that
none is solved worse than asked because its batch is easy; and with `max` the one integral beside D values that a
likelihood needs counts in full. Steps are shared by a batch, so a sample depends on its batch as far as the tolerance
allows.

Time is mapped to s = (t - t_from) / (t_to - t_from); the last step ends at s = 1 exactly, and no drift is evaluated
outside the interval (torchdiffeq by itself steps over the end, where a process may not exist, and interpolates).

References:
    torchdiffeq (Chen, 2018), https://github.com/rtqichen/torchdiffeq.
    Solving Ordinary Differential Equations I (Hairer, Norsett and Wanner, 1993), section II.4.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torchdiffeq
from annotated_types import Ge, Gt
from torch import Tensor

from itoflow import Dynamics, Field, GaussianProcess, NumericalError, ProbabilityFlowODE, Row, Sampler, Step
from itoflow.loop import Callback, x0_estimate
from itoflow.noise import Generators

_CLEAN = 1e-4
"""Where sigma(t_min) = 0, the last step to the data starts where sigma/alpha is this much of the data's deviation."""


class AdaptiveSolver(Sampler, ABC):
    """Integrates the probability-flow ODE with adaptive steps; draws no noise."""

    method: ClassVar[str]

    rtol: Annotated[float, Gt(0)] = 1e-5
    """Relative tolerance of a step, per example."""
    atol: Annotated[float, Gt(0)] = 1e-6
    """Absolute tolerance of a step, data units (for a likelihood, nats too); where the dynamics' `scale` is below 1,
    as for data of a smaller deviation, in multiples of it."""
    norm: Literal["max", "rms"] = "max"
    """What of an example's values must keep the tolerance: each, or their root mean square."""
    max_evaluations: Annotated[int, Ge(1)] = 100_000
    """Evaluations after which a run is given up."""
    denoise: bool = True
    """End with x0 at the last time, which removes the noise that is left at t_min."""

    def integrate(self, dynamics: Dynamics, state: Tensor, t_from: float, t_to: float) -> Tensor:
        """The state (B, ...) at t_to from the state at t_from, of dx = drift(x, t) dt, forwards or backwards.

        Gradients flow through the solver where the caller has them enabled.

        Raises:
            NumericalError: the drift or the state became non-finite, the step vanished, or the evaluations ran out;
                names the solver, the dynamics and the time.
        """
        if not state.numel():
            return state
        span, count, last, atol = t_to - t_from, 0, 0.0, self.atol * min(1.0, dynamics.scale)

        def fail(reason: str, s: float) -> NumericalError:
            what = f"{type(self).__name__} on {type(dynamics).__name__.lstrip('_')}"
            return NumericalError(
                f"{what} {reason} in the step after {count} evaluations, "
                f"t = {t_from + span * s:.6g}, running from t = {t_from:.6g} to {t_to:.6g}."
            )

        def drift(s: Tensor, x: Tensor) -> Tensor:
            nonlocal count, last
            last, count = min(float(s), 1.0), count + 1
            if count > self.max_evaluations:
                raise fail(f"did not finish within {self.max_evaluations} evaluations: it got stuck", last)
            t = torch.tensor(t_from + span * last, dtype=torch.float64, device=x.device)
            slope = dynamics.drift(x, t) * span
            if not bool(torch.isfinite(slope).all()):
                raise fail("got values that are not finite", last)
            return slope

        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=state.device)
        options = {"norm": _largest if self.norm == "max" else _worst_example, "step_t": ends[1:]}
        try:
            solved = torchdiffeq.odeint(
                drift, state, ends, rtol=self.rtol, atol=atol, method=self.method, options=options
            )
        except AssertionError as error:  # how torchdiffeq reports an underflow of the step
            raise fail(f"failed ({error}); the drift is too stiff or too rough for this tolerance", last) from error
        end: Tensor = solved[-1]
        if not bool(torch.isfinite(end).all()):
            raise fail("ended with values that are not finite", 1.0)
        return end

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
        """x at data time from x (B, *S) at t_max; the callback sees the state that entered the next evaluation."""
        self.check_call(field, x, callback)
        process = field.process
        watched = _ProbabilityFlow(field, cond, callback)
        t_end, denoised = process.t_min, self.denoise and isinstance(process, GaussianProcess)
        if self.denoise and isinstance(process, GaussianProcess) and float(process.ends()[0].sigma) == 0:
            log_ratio = math.log(_CLEAN * watched.scale)
            t_end = float(process.log_snr_inverse(torch.tensor(-2 * log_ratio, dtype=torch.float64)))
        end = self.integrate(watched, x, process.t_max, t_end)
        if denoised:
            t = torch.tensor(t_end, dtype=torch.float64, device=x.device)
            inner = end
            end = field(inner, t, cond).x0
            watched.called(Row(t_end, out="x0"), inner, end)
            if not bool(torch.isfinite(end).all()):
                raise NumericalError(
                    f"{type(self).__name__} got values that are not finite at its last step, t = {t_end:.6g}."
                )
        watched.flush(end)
        return end


class _ProbabilityFlow(ProbabilityFlowODE):
    """The ODE that reports each evaluation once the state after it is known."""

    def __init__(self, field: Field, cond: Mapping[str, Tensor] | None, callback: Callback | None) -> None:
        super().__init__(field, cond)
        self.callback, self._index = callback, 0
        self._pending: Callable[[Tensor], Step] | None = None

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at x."""
        velocity = super().drift(x, t)
        self.called(Row(float(t)), x, velocity)
        return velocity

    def called(self, row: Row, x: Tensor, value: Tensor) -> None:
        """One evaluation at x gave a value; the one before it is now complete."""
        if self.callback is None:
            return
        self.flush(x)
        index = self._index
        self._pending = lambda state: Step(index, None, row.t, state, lambda: x0_estimate(self.field, row, x, value))
        self._index += 1

    def flush(self, state: Tensor) -> None:
        """Report the pending evaluation, after which the state was this."""
        if self.callback is not None and self._pending is not None:
            self.callback(self._pending(state))
        self._pending = None


def _largest(scaled_error: Tensor) -> Tensor:
    return scaled_error.abs().max()


def _worst_example(scaled_error: Tensor) -> Tensor:
    """Root mean square over each example's values, the largest over the batch."""
    return scaled_error.flatten(1).square().mean(1).max().sqrt()
