"""The one loop that runs every table (see `itoflow.table`), with as little beside the network as there can be.

What depends on time alone is folded before the first call. A table without history is a sum of the state and the new
output; the state is carried as u / s with s <- a s, so that one addition in place does it:

    u / s  <-  u / s + (b / s) y + (c / s) z                                                   (1)

A table with history keeps it as the rows of one matrix H, a ring of as many as the longest row looks back, each
divided by the factor that the network's output has in it. Then the network's input and the state are a product each,

    v = p u + q H,   u <- a u + b H                                                            (2)

and the noise that enters an input is drawn into the row of H that the output is about to fill. So a run holds the
state, the network's input and output, and the history: depth + 3 tensors of the sample's size at most, made once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from itoflow.brownian import Noise
from itoflow.errors import NumericalError, UndefinedError
from itoflow.field import Field, GaussianPrediction, Plan
from itoflow.noise import Generators, restore, states
from itoflow.process import ALPHA_ZERO, GaussianProcess
from itoflow.table import Row, Table

_LARGEST_SCALE = 1e12
"""The scale s of equation (1) is put back to 1 when it leaves [1/this, this], long before float32 would overflow."""


@dataclass(frozen=True)
class Step:
    """What a callback sees after each network call.

    Arguments:
        index: of the call, from 0, of `calls` in all (None where a sampler cannot know).
        t: time of the call.
        x: the carried state after the call, (B, *S), data units.
        estimate: gives the current estimate of x0; see `x0`.
    """

    index: int
    calls: int | None
    t: float
    x: Tensor
    estimate: Callable[[], Tensor]

    @property
    def x0(self) -> Tensor:
        """E[x0 | x_t] at the network's input of this call, (B, *S); asked for while the callback runs.

        Raises:
            UndefinedError: the process is not Gaussian, or the call gave eps where alpha = 0.
        """
        return self.estimate()


Callback = Callable[[Step], None]


@torch.no_grad()
def run_table(
    table: Table,
    field: Field,
    x: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    *,
    generator: Generators = None,
    callback: Callback | None = None,
    name: str = "table",
) -> Tensor:
    """Run every row, from u = x (B, *S).

    Arguments:
        name: of the sampler, for errors.

    Raises:
        NumericalError: the result is not finite. The run is repeated, with the noise wound back, to find the step.
    """
    start = states(generator, x)
    u = _run(table, field, x, cond, generator, callback)
    if not bool(torch.isfinite(u).all()):
        restore(generator, x, start)
        _run(table, field, x, cond, generator, _raise_at_first(name))
        raise NumericalError(f"Sampler {name} ended with values that are not finite; a second run did not.")
    return u


def _run(
    table: Table,
    field: Field,
    x: Tensor,
    cond: Mapping[str, Tensor] | None,
    generator: Generators,
    callback: Callback | None,
) -> Tensor:
    plan = field.plan(table.rows, x, cond)
    noise = Noise(generator, [row.clock for row in table.rows], like=x)
    show = None if callback is None else _Show(callback, table.rows, plan, field)
    u = x.clone(memory_format=torch.contiguous_format)
    return (_run_with_history if table.depth > 1 else _run_without_history)(table, plan, u, noise, show)


def _run_without_history(table: Table, plan: Plan, u: Tensor, noise: Noise, show: _Show | None) -> Tensor:
    """Equation (1); u holds u / s."""
    network, used = plan.network, torch.empty_like(u)
    z = torch.empty_like(u) if any(row.r for row in table.rows) else used
    s = 1.0
    for i, (label, p, r, keep, b, c, s) in enumerate(_sums(table.rows, plan)):
        if show is not None:  # then no tensor is used twice, so that a step stays as it was
            used, z = torch.empty_like(u), torch.empty_like(u)
        if r:
            v = torch.mul(noise.draw(i, z), r, out=used).add_(u, alpha=p)
        else:
            v = u if p == 1 and show is None else torch.mul(u, p, out=used)
        y = network(v, label)
        if keep == 1:
            u.add_(y, alpha=b)
        elif keep == 0:  # not 0 u + b y: u may be larger than 1 / rounding
            torch.mul(y, b, out=u)
        else:
            u = torch.add(y * b, u, alpha=keep)
        if c:
            u.add_(z if r else noise.draw(i, z), alpha=c)
        if show is not None:
            show(i, u * s, v, y)
        del y  # before the next one is made
    return u if s == 1 else u.mul_(s)


def _sums(rows: Sequence[Row], plan: Plan) -> Iterator[tuple[Any, float, float, float, float, float, float]]:
    """(label, p, r, keep, b, c, s) of each row: v = p u' + r z as the network takes it; u' <- keep u' + b y + c z.

    u' = u / s, and s is that after the row.
    """
    s = 1.0
    for row, label, scale, m_x, m_y in zip(rows, plan.labels, plan.scale, plan.m_x, plan.m_y, strict=True):
        first = row.b[0] if row.b else 0.0
        from_v = first * (m_x + row.f)  # (2) put into (3): h_new is never needed by itself
        a, b, c = row.a + from_v * row.p, first * m_y, row.c + from_v * row.r
        p, r = row.p * scale * s, row.r * scale
        after = s * a
        if a == 0 or not 1 / _LARGEST_SCALE < abs(after) < _LARGEST_SCALE:
            keep, s = after, 1.0
        else:
            keep, s = 1.0, after
        yield label, p, r, keep, b / s, c / s, s


def _run_with_history(table: Table, plan: Plan, u: Tensor, noise: Noise, show: _Show | None) -> Tensor:
    """Equation (2)."""
    network, depth = plan.network, table.depth
    history = torch.zeros(depth, u.numel(), dtype=u.dtype, device=u.device)
    slots, flat, across = [row.view(u.shape) for row in history], u.view(-1), history.t()
    used = torch.empty_like(u)
    for i, (label, p, q, r, a, b, c, by_v, by_y) in enumerate(_products(table, plan, u)):
        slot = slots[i % depth]
        if show is not None:
            used = torch.empty_like(u)
        if q is not None:
            if r:
                noise.draw(i, slot)
            v = used
            torch.addmv(flat, across, q, beta=p, out=v.view(-1))
            if r and c:  # what c z adds must be added while z is there
                _ = u.add_(slot, alpha=c / a) if a else torch.mul(slot, c, out=u)
                a, c = a or 1.0, 0.0
        else:
            v = u if p == 1 and show is None else torch.mul(u, p, out=used)
        y = network(v, label)
        if by_v == 0:
            slot.copy_(y)
        elif by_y == 1:
            torch.add(y, v, alpha=by_v, out=slot)
        else:
            torch.add(v, y, alpha=by_y, out=slot)
        if b is not None:
            flat.addmv_(across, b, beta=a)
        elif a != 1:
            u.mul_(a)
        if c:
            u.add_(noise.draw(i, used if show is None else torch.empty_like(u)), alpha=c)
        if show is not None:
            show(i, u.clone(), v, y)
        del y
    return u


def _products(table: Table, plan: Plan, like: Tensor) -> Iterator[tuple[Any, ...]]:
    """(label, p, q, r, a, b, c, by_v, by_y) of each row; q and b are tensors over the rows of H, None where all zero.

    v = p u + q H, with r where the noise is; the new row of H is by_v v + by_y y, one of the two being 1.
    """
    depth, units = table.depth, list[float]()
    on_input, on_state, rest = [], [], []
    for i, (row, scale, m_x, m_y) in enumerate(zip(table.rows, plan.scale, plan.m_x, plan.m_y, strict=True)):
        q, b = [0.0] * depth, [0.0] * depth
        for j, weight in enumerate(row.q, 1):
            q[(i - j) % depth] = weight * units[i - j] * scale
        q[i % depth] = row.r * scale
        from_v = (m_x + row.f) / scale
        unit = m_y if abs(m_y) >= abs(from_v) else from_v
        units.append(unit)
        by_v, by_y = (from_v / unit, m_y / unit) if unit else (0.0, 1.0)
        for j, weight in enumerate(row.b):
            b[(i - j) % depth] = weight * units[i - j]
        on_input.append(q)
        on_state.append(b)
        rest.append((row.p * scale, row.r, row.a, row.c, by_v, by_y))
    q_all, b_all = (torch.tensor(m, dtype=torch.float64).to(like).unbind() for m in (on_input, on_state))
    for label, (p, r, a, c, by_v, by_y), q, b, some_q, some_b in zip(
        plan.labels, rest, q_all, b_all, map(any, on_input), map(any, on_state), strict=True
    ):
        yield label, p, q if some_q else None, r, a, b if some_b else None, c, by_v, by_y


class _Show:
    """Calls a callback."""

    def __init__(self, callback: Callback, rows: Sequence[Row], plan: Plan, field: Field) -> None:
        self.callback, self.rows, self.plan, self.field = callback, rows, plan, field

    def __call__(self, i: int, x: Tensor, v: Tensor, y: Tensor) -> None:
        """After call i: the state x, the network's input v as it took it, and its output y."""
        row, plan = self.rows[i], self.plan

        def estimate() -> Tensor:
            unscaled = v / plan.scale[i]
            return x0_estimate(self.field, row, unscaled, torch.add(y * plan.m_y[i], unscaled, alpha=plan.m_x[i]))

        self.callback(Step(i, len(self.rows), row.t, x, estimate))


def x0_estimate(field: Field, row: Row, v: Tensor, h: Tensor) -> Tensor:
    """x0 from the network's input v and what it gave for a row, without another call: (B, *S).

    Raises:
        UndefinedError: the process is not Gaussian, or the row gives eps where alpha = 0.
    """
    if row.out == "x0":
        return h
    if not isinstance(field.process, GaussianProcess):
        raise UndefinedError(f"{type(field.process).__name__} is not Gaussian, so the velocity determines no x0.")
    k = field.process.kernel(row.t)
    if row.out == "eps":
        if float(k.alpha) <= ALPHA_ZERO:
            raise UndefinedError(f"At t = {row.t:g} no signal is left (alpha = 0), so eps determines no x0.")
        a, b = torch.zeros_like(k.alpha), torch.ones_like(k.alpha)
    else:
        langevin = row.eta**2 / (2 * k.sigma) if row.eta else torch.zeros_like(k.sigma)
        a, b = k.d_alpha, k.d_sigma + langevin
    return GaussianPrediction(v, h, k, a, b).x0


def _raise_at_first(name: str) -> Callback:
    def check(step: Step) -> None:
        if not bool(torch.isfinite(step.x).all()):
            raise NumericalError(
                f"Sampler {name} got values that are not finite at step {step.index + 1} of {step.calls}, "
                f"t = {step.t:.6g}. The network's output there is not finite, or its scale is beyond this dtype."
            )

    return check
