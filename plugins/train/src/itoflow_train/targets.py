r"""What samplers are compared on: exact mixtures of Gaussians on any Gaussian process, and trained models.

Every Gaussian process has the same flow up to scale and time: with s = sigma / alpha, y = x / alpha solves

    dy/ds = E[eps | y],   or   dy / dlog s = y - E[x0 | y],                                        (1)

and ends at the data for s = 0. So the reference of an exact law is a solve of (1) in log s down to s = 1e-4 and the
mean there, whatever the process: what a sampler leaves out by stopping at t_min counts as its error. A trained model
knows nothing below its t_min: there the reference is a solve down to t_min, and the model's x0 at that point.

    gaussian   a correlated Gaussian in the plane
    mixture    three clusters in the plane, of unequal weight
    ring8      eight modes of width 0.1 on a circle of radius sqrt(2)
    gmm10      ten random modes of width 0.3 in 64 dimensions
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from itoflow import (
    Field,
    GaussianProcess,
    GenerativeModel,
    IncompatibleError,
    InterpolantProcess,
    ProcessSpec,
    Sampler,
    Step,
)
from itoflow.model import evaluating
from itoflow.testing import GaussianOracle, MixtureOracle
from itoflow.testing.problems import gaussian, mixture, seeded
from itoflow_train.report import conditions

_END, _START = 1e-4, 1e5
"""s at which (1) ends, and at which it starts where the process has no signal left at t_max."""


def ring8(process: GaussianProcess) -> MixtureOracle:
    """Eight modes on a ring."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return MixtureOracle(process, torch.stack([angle.cos(), angle.sin()], 1) * math.sqrt(2), stds=0.1)


def gmm10(process: GaussianProcess) -> MixtureOracle:
    """Ten modes in 64 dimensions."""
    return MixtureOracle(process, torch.randn(10, 64, generator=seeded(0), dtype=torch.float64), stds=0.3)


ORACLES: dict[str, Callable[[GaussianProcess], GaussianOracle | MixtureOracle]] = {
    "gaussian": gaussian,
    "mixture": mixture,
    "ring8": ring8,
    "gmm10": gmm10,
}


class Target(ABC):
    """A field and where its runs start.

    Attributes:
        title: for people.
        process: of the field.
    """

    title: str
    process: ProcessSpec

    @abstractmethod
    def run(self, sampler: Sampler) -> tuple[Tensor, int]:
        """What a sampler ends at, (N, *S), and the network calls that it made.

        Raises:
            NumericalError: values became non-finite.
        """

    @abstractmethod
    def solve(self, sampler: Sampler) -> tuple[Tensor, int]:
        """The same of the reference, float64."""


class OracleTarget(Target):
    """An exact law of `ORACLES`.

    Arguments:
        name: of the law.
        process: a Gaussian one.
        examples: N.
        seed: of x at t_max.

    Raises:
        IncompatibleError: the process is not Gaussian.
    """

    process: GaussianProcess

    def __init__(self, name: str, process: ProcessSpec, examples: int, seed: int) -> None:
        if not isinstance(process, GaussianProcess):
            raise IncompatibleError(
                f"The exact law {name!r} needs a GaussianProcess; {type(process).__name__} is none. "
                "Give another by --process, e.g. --process vp."
            )
        self.title, self.process, self.law = f"{name} on {process!r}", process, ORACLES[name]
        self.field = self.law(process)
        like = torch.empty(0, dtype=torch.float64)
        self.x = process.prior((examples, *self.field.shape), like=like, generator=seeded(seed))

    def run(self, sampler: Sampler) -> tuple[Tensor, int]:
        """In float64."""
        return _counted(sampler, self.field, self.x)

    def solve(self, sampler: Sampler) -> tuple[Tensor, int]:
        """Equation (1)."""
        k = self.process.kernel(self.process.t_max)
        alpha, sigma = float(k.alpha), float(k.sigma)
        lost = alpha * _START < sigma
        flow = _LogFlow(high=_START if lost else sigma / alpha)
        return _counted(sampler, self.law(flow), self.x * (_START / sigma) if lost else self.x / alpha)


class ModelTarget(Target):
    """A trained model; class-conditional ones draw the classes in turn.

    Arguments:
        name: for people.
        model: the network runs in its own dtype, the reference's state in float64.
        examples: N.
        seed: of x at t_max.

    Raises:
        IncompatibleError: the process starts from data.
        InputError: the model needs conditions other than classes.
    """

    def __init__(self, name: str, model: GenerativeModel, examples: int, seed: int) -> None:
        if isinstance(model.process, InterpolantProcess):
            raise IncompatibleError(
                f"{type(model.process).__name__} joins two data sets, so that its runs start from data and not from "
                "noise; they are compared on models with a prior only."
            )
        self.title, self.process, self.model = f"{name} on {model.process!r}", model.process, model
        weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        like = torch.empty(0, dtype=dtype, device=weight.device)
        self.cond = model.data.conditions(conditions(model, examples), examples, like.device)
        self.x = model.process.prior((examples, *model.data.shape), like=like, generator=seeded(seed))

    def run(self, sampler: Sampler) -> tuple[Tensor, int]:
        """In the model's dtype."""
        with evaluating(self.model):
            return _counted(sampler, self.model.field, self.x, self.cond)

    def solve(self, sampler: Sampler) -> tuple[Tensor, int]:
        """With the state in float64."""
        with evaluating(self.model):
            return _counted(sampler, self.model.field, self.x.double(), self.cond)


class _LogFlow(GaussianProcess):
    """Equation (1): alpha = 1, sigma from `_END` to `high`, geometric in t."""

    high: float

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """1e-4 (high / 1e-4)^t."""
        return _END * torch.exp(math.log(self.high / _END) * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """sigma log(high / 1e-4)."""
        return math.log(self.high / _END) * self.sigma(t)


def _counted(sampler: Sampler, field: Field, x: Tensor, cond: Mapping[str, Any] | None = None) -> tuple[Tensor, int]:
    calls: list[int] = []

    def count(step: Step) -> None:
        calls.append(step.index)

    return sampler(field, x, cond, callback=count), len(calls)
