r"""What the kit runs components on: small processes and data laws with exact answers, in core alone.

    Preserving   alpha = cos(phi t),  sigma = sin(phi t)            regular on [t_min, t_max], as VP is
    Exploding    alpha = 1,           sigma = s_0 (s_1 / s_0)^t     data scale kept, as VE is
    Straight     alpha = 1 - t,       sigma = t                     singular at both ends, as flow matching's path is
    Undeclared   Preserving's drift and diffusion, but not declared Gaussian: no kernel, no x0, no eps

An objective or a sampler that requires more than these offer is run on the installed processes that fit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from itoflow import compatibility, registry
from itoflow.errors import IncompatibleError, ItoflowError, ItoflowWarning
from itoflow.field import Conditions, Field
from itoflow.noise import Generators
from itoflow.parametrization import Parametrization
from itoflow.prediction import DynamicsPrediction
from itoflow.process import GaussianProcess, PathSample, ProcessSpec
from itoflow.testing.oracles import GaussianOracle, MixtureOracle

_PHI = 1.56
"""Angle at t = 1, short of pi/2 so that some signal is left: alpha(1) = 0.011."""


class Preserving(GaussianProcess):
    """alpha^2 + sigma^2 = 1 along an arc."""

    t_min: float = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        """cos(phi t)."""
        return torch.cos(_PHI * t)

    def sigma(self, t: Tensor) -> Tensor:
        """sin(phi t)."""
        return torch.sin(_PHI * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        """-phi sin(phi t)."""
        return -_PHI * torch.sin(_PHI * t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """phi cos(phi t)."""
        return _PHI * torch.cos(_PHI * t)

    def prior_std(self) -> float:
        """1, the scale of everything here."""
        return 1.0


class Exploding(GaussianProcess):
    """Noise from 0.05 to 10 data units, geometric in t."""

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """0.05 * 200^t."""
        return 0.05 * torch.exp(math.log(200) * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """sigma log 200."""
        return math.log(200) * self.sigma(t)


class Straight(GaussianProcess):
    """A straight line from data to noise."""

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t itself."""
        return t.clone()

    def d_alpha(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)


class Undeclared(ProcessSpec):
    """The SDE of `Preserving`, given by drift, diffusion and prior only."""

    t_min: float = 1e-3

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """-phi tan(phi t) x."""
        return Preserving().drift(x, t)

    def diffusion(self, t: Tensor) -> Tensor:
        """sqrt(2 phi tan(phi t))."""
        return Preserving().diffusion(t)

    def prior(self, shape: Sequence[int], *, like: Tensor, generator: Generators = None) -> Tensor:
        """N(0, I)."""
        return Preserving().prior(shape, like=like, generator=generator)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, I)."""
        return Preserving().prior_log_prob(x)

    def perturb(self, x0: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> PathSample:
        """The exact transition, so that nothing here carries an error of simulation."""
        sample = Preserving().perturb(x0, t, generator=generator)
        return PathSample(x=sample.x, t=sample.t, x0=x0)


class UndeclaredOracle(Field):
    """The exact field of `Undeclared` for Gaussian data: velocity and score.

    Arguments:
        known: the same field where the process is declared Gaussian.
    """

    def __init__(self, known: GaussianOracle) -> None:
        super().__init__(Undeclared(), known.data_std)
        self.known = known

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> DynamicsPrediction:
        """The prediction at x (B, *S) and t () or (B,)."""
        exact = self.known(x, t, cond)
        return DynamicsPrediction(self.process, x, t, velocity=exact.velocity, score=exact.score)


def processes(requires: type[ProcessSpec]) -> list[ProcessSpec]:
    """The processes above that derive from `requires`, or else those installed that do, with default options.

    Raises:
        AssertionError: there is none, so that nothing can be checked.
    """
    own: list[ProcessSpec] = [
        p for p in (Preserving(), Exploding(), Straight(), Undeclared()) if isinstance(p, requires)
    ]
    if own:
        return own
    found = [process for process in _installed() if isinstance(process, requires)]
    if not found:
        raise AssertionError(
            f"This component requires a {requires.__name__}, and no installed process is one, so that it cannot be "
            "checked. Install a plugin that has one, or register one."
        )
    return found


def _installed() -> Iterator[ProcessSpec]:
    for name in registry.available("process"):
        try:
            yield registry.create("process", name)
        except ItoflowError:
            continue


def gaussian(process: GaussianProcess) -> GaussianOracle:
    """Correlated Gaussian data in the plane."""
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    return GaussianOracle(process, torch.tensor([0.8, -0.5], dtype=torch.float64), covariance)


def mixture(process: GaussianProcess) -> MixtureOracle:
    """Three Gaussian clusters in the plane, of different weight, at unit scale."""
    means = torch.tensor([[1.2, 0.5], [-1.0, 0.8], [0.0, -1.1]], dtype=torch.float64)
    return MixtureOracle(process, means, torch.tensor([0.5, 0.3, 0.2]), stds=0.3)


def exact_field(process: ProcessSpec) -> Field:
    """The field of Gaussian data in the plane for any of the processes here.

    Raises:
        AssertionError: the process is neither Gaussian nor `Undeclared`, so that no exact field is known.
    """
    if isinstance(process, Undeclared):
        return UndeclaredOracle(gaussian(Preserving()))
    if not isinstance(process, GaussianProcess):
        raise AssertionError(f"No exact field is known for {type(process).__name__}: test this component by hand.")
    return gaussian(process)


def solvable(process: ProcessSpec, parametrization: Parametrization) -> ProcessSpec | None:
    """The process as `compose` would use it with this prediction; None where it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ItoflowWarning)
        try:
            return compatibility.solvable(process, parametrization)
        except IncompatibleError:
            return None


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)
