"""What is lowered: the errors of a method on a family of targets, each over the best of other methods on that target.

For a target and a number of evaluations there are three columns, in logarithms:

    the typical error, a mean of log e over the middle half of points that start at random (in place of the median),
    the same near boundaries between modes, where an error on the way sends a point to the wrong one,
    the root mean square over both, each counted for what it stands for.

Of each the least among `others`, methods of other kinds on a straight line and on the times of Karras et al., is taken
off. What is left, R, is to be below 0 in every column of every target; so what is lowered is a mean of exp(4 R) / 4,
which minds what is worst. Above R = 0 for the root mean square, log 2 for the others, it goes on straight: there a
point on the wrong side of a boundary decides, which descent cannot mend.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from families import Mixture
from networks import Network
from torch import Tensor

from itoflow import create
from itoflow.testing import OracleField
from itoflow.testing.problems import Straight
from itoflow_samplers.ode import HEUN_3, RK4, Euler, Midpoint, RungeKutta

Target = Mixture | Network
STARTS = {"80": math.atan(80.0), "inf": math.pi / 2}
SHARPNESS, STRAIGHT, WEIGHTS = 4.0, (math.log(2), math.log(2), 0.0), (1.0, 0.5, 1.0)
NEAR = 10
"""One of so many points is near a boundary."""
MULTISTEP: tuple[dict[str, str | int], ...] = (
    *({"name": "unipc", "order": order} for order in (2, 3)),
    *({"name": "adams", "predict": frame, "order": order} for frame in ("velocity", "v") for order in (2, 3)),
    *({"name": "exponential-adams", "predict": "v", "order": order} for order in (2, 3)),
    *(
        {"name": "exponential-adams", "predict": frame, "variable": "log-snr", "order": order}
        for frame in ("noise", "data")
        for order in (2, 3)
    ),
)
"""On times that are uniform, and on those of Karras et al. from s = 80."""


class Heun3(RungeKutta):
    """Three network evaluations a step; order 3."""

    tableau = HEUN_3


class Problem(NamedTuple):
    """A target, its start, points there, the exact endpoints, and which of them are near a boundary."""

    target: Target
    start: float
    x: Tensor
    exact: Tensor
    near: Tensor


def flow(target: Target, x: Tensor, theta: float, steps: int = 400) -> Tensor:
    """The endpoint by Runge-Kutta of order 4 in w = asinh(1/s), down to the target's last s, and x0 there."""

    def slope(x: Tensor, w: float) -> Tensor:
        alpha, sigma = math.tanh(w), 1 / math.cosh(w)
        x0 = target.denoise(x, alpha, sigma)
        return -(alpha * (x - alpha * x0) / sigma - sigma * x0) / math.cosh(w)

    w = math.asinh(math.cos(theta) / math.sin(theta))
    h = (math.asinh(1 / target.end) - w) / steps
    for _ in range(steps):
        a = slope(x, w)
        b = slope(x + h / 2 * a, w + h / 2)
        c = slope(x + h / 2 * b, w + h / 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c, w + h))
        w += h
    last = math.atan(target.end)
    return target.denoise(x, math.cos(last), math.sin(last))


def near_a_boundary(target: Target, z: Tensor, keep: int) -> Tensor:
    """Of the starts z those whose endpoints move most when they do, but for the last 0.5 per cent."""
    moved = z + 1e-4 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    grown = (flow(target, moved, math.pi / 2, 80) - flow(target, z, math.pi / 2, 80)).norm(dim=1)
    return z[grown.argsort(descending=True)[len(z) // 200 :][:keep]]


def problems(family: Mapping[str, Target], points: int) -> list[Problem]:
    """Of each target; a third of the points near a boundary."""
    made, near = [], points // 3
    for target in family.values():
        generator = torch.Generator().manual_seed(100)
        z = torch.randn(points - near, target.size, generator=generator)
        pool = torch.randn(NEAR * near, target.size, generator=generator)
        z = torch.cat([z, near_a_boundary(target, pool, near)])
        start = STARTS[target.start]
        x = z * math.sin(start)
        made.append(Problem(target, start, x, flow(target, x, start), torch.arange(points) >= points - near))
    return made


def columns(end: Tensor, problem: Problem) -> Tensor:
    """The three logarithms, (3,)."""
    square = (end - problem.exact).square().mean(1).clamp(min=1e-26)
    usual, near = square[~problem.near], square[problem.near]

    def typical(square: Tensor) -> Tensor:
        logs = square.log().sort().values / 2
        return logs[len(logs) // 4 : -(len(logs) // 4)].mean()

    whole = ((NEAR - 1) * usual.mean() + near.mean()) / NEAR
    return torch.stack([typical(usual), typical(near), whole.log() / 2])


def others(target: Target, x: Tensor, n: int) -> Iterator[Tensor]:
    """Endpoints of other methods in n evaluations, or as many of them as fit."""
    last = 0.0
    if isinstance(target, Network):
        last = target.end / (1 + target.end)
    else:
        whole = OracleField(Straight(t_max=1 - 1e-9, t_min=1e-9), target.denoise, 1.0)
        for method in (Euler, Midpoint, Heun3, RK4):
            if steps := n // len(method.tableau.c):
                yield method(steps=steps, grid="uniform", denoise=False)(whole, x)
    first = 0.999 if target.start == "inf" else 80 / 81
    for line, grid in (
        (Straight(t_max=first, t_min=last), "uniform"),
        (Straight(t_max=80 / 81, t_min=max(last, 0.002)), "karras"),
    ):
        field = OracleField(line, target.denoise, 1.0)
        for options in (o for o in MULTISTEP if int(o["order"]) <= n):
            yield create("sampler", **options, steps=n, grid=grid)(field, x)


def best_of_others(problem: Problem, n: int) -> Tensor:
    """The least of each column, (3,)."""
    found = torch.stack([columns(end, problem) for end in others(problem.target, problem.x, n)])
    return torch.nan_to_num(found, nan=math.inf).amin(0)


def short_of_the_goal(ratios: Tensor) -> Tensor:
    """The mean over problems and columns of what the module says; R is (P, 3)."""
    straight = torch.tensor(STRAIGHT)
    curved = (SHARPNESS * torch.minimum(ratios, straight)).exp() / SHARPNESS
    beyond = (ratios - straight).clamp(min=0) * (SHARPNESS * straight).exp()
    return (curved + beyond).mean(0) @ torch.tensor(WEIGHTS) / sum(WEIGHTS)
