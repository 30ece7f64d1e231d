"""The components of the plugin `itoflow-toy`, which `conftest.py` installs for a test: one or two of each kind.

References:
    Toys for Tests (Nobody, 2024), https://example.org/toys, equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from itoflow import (
    Attention,
    AttentionCall,
    Backbone,
    DataSpec,
    Field,
    GaussianProcess,
    Objective,
    Parametrization,
    ProcessSpec,
    Row,
    Sampler,
    Table,
    TableSampler,
)
from itoflow.noise import normal
from itoflow.parametrization import PredictionName


class Decay(GaussianProcess):
    """x_t = exp(-rate t) x_0 + t eps: regular at both ends but for sigma(0) = 0."""

    rate: Annotated[float, Gt(0), Le(math.inf)] = 3.0
    """Decay of the data, per unit of t."""
    t_min: Annotated[float, Ge(0), Lt(1)] = 0.01
    """Data end."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.rate * t)

    def sigma(self, t: Tensor) -> Tensor:
        return 1.0 * t


class Straight(GaussianProcess):
    """x_t = (1 - t) x_0 + t eps: noise determines no x_0 at t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return 1.0 * t


class Forgetful(Straight):
    """Nothing is left of the data from t = 0.25 on."""

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - 4 * t).clamp(min=0)


class Brownian(ProcessSpec):
    """dx = dw, not declared Gaussian."""

    simulation_steps: ClassVar[int] = 4

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def prior(self, shape: Sequence[int], *, like: Tensor, generator: Any = None) -> Tensor:
        return normal(shape, like=like, generator=generator)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * x.flatten(1).square().sum(1)


class Denoise(Objective):
    """|x0 - x0_hat|^2 at one time."""

    requires: ClassVar[type] = GaussianProcess

    prediction: PredictionName = "v"
    """What the network's output means."""

    def parametrization(self, process: ProcessSpec, data: DataSpec) -> Parametrization:
        return Parametrization(prediction=self.prediction, data_std=data.std)

    def __call__(
        self,
        field: Field,
        x0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        sample = field.process.perturb(x0, torch.full((len(x0),), 0.5), generator=generator)
        return (field(sample.x, sample.t, cond).x0 - x0).square().flatten(1).mean(1)


class Match(Denoise):
    """An objective for every process."""

    requires: ClassVar[type] = ProcessSpec

    prediction: PredictionName = "velocity"


class Linear(Backbone):
    """One matrix on the example, the time and the conditions, with dropout."""

    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Probability with which a value of the example is dropped in training."""
    tied: bool = False
    """Give the matrix a second name."""

    def build(self, data: DataSpec) -> nn.Module:
        return LinearNet(self, data)


class LinearNet(nn.Module):
    def __init__(self, spec: Linear, data: DataSpec) -> None:
        super().__init__()
        size = math.prod(data.shape)
        self.classes = data.classes or 0
        self.dropout = nn.Dropout(spec.dropout)
        self.matrix = nn.Linear(size + 1 + self.classes + (data.vector or 0), size)
        if spec.tied:
            self.again = self.matrix

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        parts = [self.dropout(x.flatten(1)), t[:, None]]
        if self.classes:
            parts.append(nn.functional.one_hot(cond["class"], self.classes).to(x.dtype))
        if "vector" in cond:
            parts.append(cond["vector"].to(x.dtype))
        y: Tensor = self.matrix(torch.cat(parts, 1))
        return y.view_as(x)


class Euler(TableSampler):
    """x <- x + h v."""

    steps: Annotated[int, Ge(1)] = 4

    def table(self, process: ProcessSpec) -> Table:
        times, ending = self.times(process)
        return Table((*(Row(t, b=(after - t,)) for t, after in pairwise(times)), *ending))


class Noisy(Euler):
    """Euler on the family (4) with strength 1, so that every step draws noise."""

    requires: ClassVar[type] = GaussianProcess

    def table(self, process: ProcessSpec) -> Table:
        times, ending = self.times(process)
        rows = (Row(t, b=(after - t,), c=(t - after) ** 0.5, eta=1.0) for t, after in pairwise(times))
        return Table((*rows, *ending))


class Jump(Sampler):
    """x0 in one call: a sampler without steps."""

    requires: ClassVar[type] = GaussianProcess

    def __call__(
        self, field: Field, x: Tensor, cond: Any = None, *, generator: Any = None, callback: Any = None
    ) -> Tensor:
        return field(x, torch.tensor(field.process.t_max), cond).x0


class Scaled(Sampler):
    """Another sampler's samples, times a number: a component that holds components."""

    inner: Sampler = Jump()
    """The sampler."""
    others: tuple[Sampler, ...] = ()
    """More of them."""
    factor: Annotated[float, Gt(0)] = math.inf
    """What multiplies the samples."""

    def __call__(
        self, field: Field, x: Tensor, cond: Any = None, *, generator: Any = None, callback: Any = None
    ) -> Tensor:
        return self.inner(field, x, cond, generator=generator, callback=callback) * self.factor


class Plain(Attention):
    """The formula."""

    def supports(self, call: AttentionCall) -> tuple[str, ...]:
        return ()

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        bias: Tensor | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
    ) -> Tensor:
        logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        return (logits if bias is None else logits + bias).softmax(-1) @ v


class Fast(Plain):
    """Preferred, but with neither bias nor second derivatives."""

    preference: ClassVar[int] = 10

    def supports(self, call: AttentionCall) -> tuple[str, ...]:
        return ("no bias",) * (call.bias is not None) + ("no second derivative",) * call.second_order


class Rough(Plain):
    """Preferred above all, and approximate."""

    exact: ClassVar[bool] = False
    preference: ClassVar[int] = 100


def greet(argv: list[str]) -> int | None:
    """The command `greet`."""
    print("hello", *argv)
    return 3 if argv else None
