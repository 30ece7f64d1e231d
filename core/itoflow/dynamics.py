"""The dynamics that follow from a process and a field; each has a drift and a diffusion that any integrator can run.

    forward SDE            dx = f dt + g dw                                    t: 0 -> 1    (1)
    probability-flow ODE   dx = [f - g^2/2 grad log p_t] dt                    either way   (2)
    reverse SDE            dx = [f - g^2 grad log p_t] dt + g dw,  dt < 0      t: 1 -> 0    (3)

(2) and (3) are members of one family. For any strength eta(t) >= 0,

    dx = [velocity - eta^2/2 grad log p_t] dt + eta dw,  dt < 0,                            (4)

with the velocity of (2), has the same marginals p_t: eta = 0 is (2), eta = g is (3). A strength other than g is how a
process whose g is infinite at an end of time is still sampled stochastically.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, equations 5, 6 and 13.
    Reverse-time diffusion equation models (Anderson, 1982), for (3).
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, appendix B.5, for (4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from itoflow.errors import InputError, NumericalError
from itoflow.field import Field
from itoflow.noise import Generators, normal
from itoflow.process import ProcessSpec, broadcast_time


class Dynamics(ABC):
    """dx = drift(x, t) dt + diffusion(t) dw in the direction of `forward` time.

    Attributes:
        scale: what counts as large in a state, data units; an integrator holds its absolute error below it.
    """

    scale: float = 1.0

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, *S), data units per unit of t, for x (B, *S) and t () or (B,)."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """The shape of t; zero for an ODE."""


class ForwardSDE(Dynamics):
    """Equation (1), run from 0 to 1."""

    def __init__(self, process: ProcessSpec) -> None:
        self.process = process

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(x, t)."""
        return self.process.drift(x, t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t)."""
        return self.process.diffusion(t)


class ReverseSDE(Dynamics):
    """Equation (4), run from 1 to 0: the reverse SDE (3) unless another strength is given.

    Arguments:
        field: gives velocity and score.
        cond: conditions for the field.
        eta: the strength, a function of t (any shape) that keeps its shape; None is g, the reverse SDE.
    """

    def __init__(
        self,
        field: Field,
        cond: Mapping[str, Tensor] | None = None,
        eta: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.field, self.cond = field, cond
        self.eta = field.process.diffusion if eta is None else eta

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """velocity - eta^2/2 grad log p_t."""
        prediction = self.field(x, t, self.cond)
        half = broadcast_time(self.eta(t).square() / 2, x.ndim).to(x.dtype)
        velocity: Tensor = prediction.velocity
        if not bool(half.any()):  # no score is needed, and where there is none to have, none is asked for
            return velocity
        return velocity - torch.where(half > 0, half * prediction.score, 0.0)

    def diffusion(self, t: Tensor) -> Tensor:
        """eta(t)."""
        return self.eta(t)


class ProbabilityFlowODE(Dynamics):
    """Equation (2): deterministic, run in either direction.

    Arguments:
        field: gives the velocity.
        cond: conditions for the field.

    `scale` is the data's standard deviation, or 1 for data at one point.
    """

    def __init__(self, field: Field, cond: Mapping[str, Tensor] | None = None) -> None:
        self.field, self.cond, self.scale = field, cond, field.data_std or 1.0

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity f - g^2/2 grad log p_t."""
        velocity: Tensor = self.field(x, t, self.cond).velocity
        return velocity

    def diffusion(self, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(t)


def simulate(dynamics: Dynamics, x: Tensor, times: Sequence[float], *, generator: Generators = None) -> Tensor:
    """Euler-Maruyama along `times`, forwards or backwards: x at times[0] to x at times[-1], both (B, *S).

    Raises:
        InputError: fewer than two times, or times that do not run strictly one way.
        NumericalError: the state became non-finite; names the dynamics, the time and the step.
    """
    steps = [after - now for now, after in pairwise(times)]
    if not steps or not (all(h > 0 for h in steps) or all(h < 0 for h in steps)):
        raise InputError(f"Times must rise strictly, or fall strictly, and be at least two. Given: {list(times)[:6]}.")
    for i, h in enumerate(steps):
        t = torch.tensor(times[i], dtype=torch.float64, device=x.device)
        noise = float(dynamics.diffusion(t)) * abs(h) ** 0.5
        x = x + h * dynamics.drift(x, t)
        if noise:
            x = x + noise * normal(x.shape, like=x, generator=generator)
        if not bool(torch.isfinite(x).all()):
            raise NumericalError(
                f"{type(dynamics).__name__} gave a non-finite state at step {i + 1} of {len(steps)}, from "
                f"t = {times[i]:.6g} to {times[i + 1]:.6g}. Use more steps, or stay further from the end of time."
            )
    return x
