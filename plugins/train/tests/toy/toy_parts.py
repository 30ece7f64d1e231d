"""The least model that trains: so that the engine is tested with no other plugin than the ones it declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from itoflow import (
    Backbone,
    DataSpec,
    Dynamics,
    Field,
    GaussianProcess,
    Objective,
    Parametrization,
    ProcessSpec,
    Registration,
    Row,
    Table,
    TableSampler,
    hookimpl,
)


class ToyProcess(GaussianProcess):
    """alpha = 1 - t, sigma = t."""

    t_min: float = 0.01
    scale: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return self.scale * t


class ToyObjective(Objective):
    """Regression of x0 - eps."""

    def parametrization(self, process: ProcessSpec, data: DataSpec) -> Parametrization:
        return Parametrization(prediction="velocity", data_std=data.std)

    def __call__(
        self,
        field: Field,
        x0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        t = torch.rand(len(x0), generator=generator, dtype=torch.float64).clamp(min=0.01)
        sample = field.process.perturb(x0, t, generator=generator)
        return (field(sample.x, t, cond).x0 - x0).square().flatten(1).mean(1)


class ToyBackbone(Backbone):
    """One hidden layer."""

    width: int = 16

    def build(self, data: DataSpec) -> nn.Module:
        return ToyNet(math.prod(data.shape), data.classes or 1, self.width)


class ToyNet(nn.Module):
    def __init__(self, size: int, classes: int, width: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes, width)
        self.enter = nn.Linear(size + 1, width)
        self.leave = nn.Linear(width, size)

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        h = self.enter(torch.cat([x.flatten(1), t[:, None]], 1))
        if "class" in cond:
            h = h + self.label(cond["class"])
        return self.leave(torch.tanh(h)).view_as(x)


class ToySampler(TableSampler):
    """Euler."""

    steps: int = 4

    def table(self, process: ProcessSpec) -> Table:
        times, ending = self.times(process)
        return Table((*(Row(t, b=(after - t,)) for t, after in pairwise(times)), *ending))


class ToyIntegrator(ToySampler):
    """Runge-Kutta of order 4, either way, whatever the tolerance."""

    rtol: float = 1e-3
    atol: float = 1e-3

    def integrate(self, dynamics: Dynamics, state: Tensor, t_from: float, t_to: float) -> Tensor:
        times = torch.linspace(t_from, t_to, self.steps + 1, dtype=torch.float64)
        for t, h in zip(times, times.diff(), strict=False):
            first = dynamics.drift(state, t)
            second = dynamics.drift(state + h / 2 * first, t + h / 2)
            third = dynamics.drift(state + h / 2 * second, t + h / 2)
            fourth = dynamics.drift(state + h * third, t + h)
            state = state + h / 6 * (first + 2 * second + 2 * third + fourth)
        return state


@hookimpl
def itoflow_processes() -> list[Registration]:
    return [Registration("toy-process", "toy_parts:ToyProcess", "toy")]


@hookimpl
def itoflow_objectives() -> list[Registration]:
    return [Registration("toy-objective", "toy_parts:ToyObjective", "toy")]


@hookimpl
def itoflow_backbones() -> list[Registration]:
    return [Registration("toy-backbone", "toy_parts:ToyBackbone", "toy")]


@hookimpl
def itoflow_samplers() -> list[Registration]:
    return [
        Registration("toy-sampler", "toy_parts:ToySampler", "toy"),
        Registration("toy-integrator", "toy_parts:ToyIntegrator", "toy"),
    ]
