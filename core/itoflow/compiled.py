"""The step of a table as one function without side effects: what `torch.compile` fuses and a CUDA graph replays.

Equation (2) of `itoflow.folding` with the history as n tensors h_1, ..., h_n, the last of which h_0 replaces:

    v = p u + sum_{j=1}^n q_j h_j + r z,   y = network(v),   h_0 = by_v v + by_y y,
    u <- a u + sum_{j=0}^{n-1} b_j h_j + c z

All coefficients are elements of one tensor a step, so that one compilation serves every step of every table with that
many slots (`itoflow.slots`). `itoflow.loop` in turn writes in place and leaves out what is zero, which is faster where
each operation is launched by itself; the two agree to rounding.

The option `compile` of a sampler runs its table by the compiled step. `captured` records a whole run of `itoflow.loop`,
all of its steps, in one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from itoflow.errors import InputError
from itoflow.field import Conditions, Evaluate, Field, Solved
from itoflow.folding import kept, products
from itoflow.slots import slots
from itoflow.table import Table

if TYPE_CHECKING:
    from itoflow.sampler import Sampler


class State(NamedTuple):
    """What a step hands on: u and h_0, (B, *S) each; and what the network was given and gave."""

    u: Tensor
    h: Tensor
    v: Tensor
    y: Tensor


def step(
    network: Evaluate, u: Tensor, history: tuple[Tensor, ...], z: Tensor | None, label: Any, weights: Tensor
) -> State:
    """One row of a table.

    Arguments:
        network: as `Field.evaluator` gives it.
        u: the state, (B, *S).
        history: h_1, ..., h_n, (B, *S) each, zeros before the first call.
        z: noise, (B, *S); None for a table without any.
        label: of this call, from `Solved`.
        weights: p, r, a, c, by_v, by_y, q_1, ..., q_n, b_0, ..., b_(n-1), dtype and device of u; (6 + 2 n,).
    """
    p, r, a, c, by_v, by_y, *rest = weights.unbind()
    q, b = rest[: len(history)], rest[len(history) :]
    v = p * u
    for weight, h in zip(q, history, strict=True):
        v = v + weight * h
    if z is not None:
        v = v + r * z
    y = network(v, label)
    new = by_v * v + by_y * y
    u = a * u
    for weight, h in zip(b, (new, *history[:-1]), strict=True):
        u = u + weight * h
    if z is not None:
        u = u + c * z
    return State(u, new, v, y)


@cache
def compiled_step() -> Callable[..., State]:
    """`step`, compiled once for all that use it.

    Torch compiles anew for another network, shape or n, up to its limit (`torch._dynamo.config.recompile_limit`) of
    versions in a process; what is more runs as it is, with a warning of torch's.
    """
    compiled: Callable[..., State] = torch.compile(step)
    return compiled


class Weighed(NamedTuple):
    """A table as `step` takes it."""

    solved: Solved
    weights: Sequence[Tensor]
    noisy: Sequence[bool]
    orders: Sequence[tuple[int, ...]]
    """The slots of h_1, ..., h_n, for each step."""


def weighed(table: Table, field: Field, like: Tensor) -> Weighed:
    """The weights of each step for a state like this; kept with the table."""

    def make() -> Weighed:
        solved, held = field.solved(table.rows, like), slots(table.rows)
        rows, noisy, orders = [], [], []
        for i, (p, r, a, c, by_v, by_y, q, b) in enumerate(products(table, solved)):
            on_input, on_state, filled = held.spread(i - 1, q), held.spread(i, b), held.places[i]
            others = [slot for slot in range(held.count) if slot != filled]
            before, after = (*others, filled), (filled, *others)
            rows.append((p, r, a, c, by_v, by_y, *(on_input[s] for s in before), *(on_state[s] for s in after)))
            noisy.append(r != 0 or c != 0)
            orders.append(before)
        weights = torch.tensor(rows, dtype=torch.float64).to(like).unbind()
        return Weighed(solved, weights, noisy, orders)

    return kept(table, field, like, make)


def captured(
    sampler: Sampler,
    field: Field,
    like: Tensor,
    cond: Conditions | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Callable[[Tensor], Tensor]:
    """A whole run of a sampler, network calls and all, as one CUDA graph: a function from prior to data, (B, *S) each.

    Shape and conditions are those given here; weights are read where they are at each replay. A replay overwrites what
    the one before it returned, and does not check that values are finite. Two runs are made first, to warm up.

    Arguments:
        like: a tensor with the shape, dtype and CUDA device that x will have.
        cond: conditions of every replay, on that device.
        generator: of that device; None is its default one. Each replay draws new noise.

    Raises:
        InputError: `like` is not on a CUDA device, or the noise is a Brownian path, which is not drawn on the device.
    """
    from itoflow.sampler import TableSampler

    if not like.is_cuda:
        raise InputError(f"A CUDA graph needs a CUDA device; `like` is on {like.device}. Use the option `compile`.")
    rows = sampler.tabulated(field.process, field.data_std).rows if isinstance(sampler, TableSampler) else ()
    if any(row.clock is not None for row in rows):
        raise InputError(f"{type(sampler).__name__} follows a Brownian path, which no CUDA graph can draw.")
    x, stream = torch.zeros_like(like), torch.cuda.Stream(like.device)
    stream.wait_stream(torch.cuda.current_stream(like.device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            sampler(field, x, cond, generator=generator)
    torch.cuda.current_stream(like.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        end = sampler(field, x, cond, generator=generator)

    def replay(start: Tensor) -> Tensor:
        x.copy_(start)
        graph.replay()
        return end

    return replay
