"""A table folded with what a field solves of it, so that a step of `itoflow.loop` is left with three operations.

The network's output y enters a row through h = m_x v + m_y y alone (`itoflow.field.Solved`), so m_x, m_y and the scale
of its input become part of the row's coefficients. A table without history is a sum of the state and the new output;
its state is carried as u / s with s <- a s, so that one addition in place does it:

    u / s  <-  u / s + (b / s) y + (c / s) z                                                   (1)

A table with history has it as the rows of a matrix H (`itoflow.slots` says which), each divided by the factor that the
network's output has in it. Then the network's input and the state are a product each,

    v = p u + q H + r z,   u <- a u + b H + c z                                                (2)

Where no row has q or r, the state is carried as s u with s = p of the row to come, and is then the network's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from itoflow.field import Field, Solved
from itoflow.slots import Slots, slots
from itoflow.table import Table

T = TypeVar("T")

_LARGEST_SCALE = 1e12
"""The scale s of equation (1) is put back to 1 when it leaves [1/this, this], long before float32 would overflow."""


class Sum(NamedTuple):
    """One row of (1): v = p u' + r z, u' <- keep u' + b y + c z, where u' = u / s, and s is that after the row."""

    p: Tensor
    """float64, (): a product with a tensor takes half as long as one with a number."""
    apart: bool
    """Whether the network's input is to be formed; otherwise it is u' itself."""
    r: float
    keep: float
    b: float
    c: float
    s: float


class Product(NamedTuple):
    """One row of (2); the new row of H is by_v v + by_y y, one of the two being 1."""

    p: float
    r: float
    a: float
    c: float
    by_v: float
    by_y: float
    q: tuple[float, ...]
    """Over H before the call, newest first; empty if all zero."""
    b: tuple[float, ...]
    """Over H after it."""


class Turn(NamedTuple):
    """A `Product` where H is the slots of `itoflow.slots`; that of the call holds the noise of its input until then."""

    slot: int
    """Which the call fills."""
    p: float
    p_tensor: Tensor
    apart: bool
    """Whether the network's input is to be formed; otherwise it is u itself."""
    q: Tensor | None
    """Over the slots before the call, r among them, (slots,), dtype and device of the state; None if all zero."""
    r: float
    early: float
    """Factor of z in the state where the same z enters the input too: added before the call, whose output takes the
    slot that z lies in. 0 otherwise."""
    a: float
    forget: bool
    """Whether a was 0, and only what is added early is kept."""
    b: Tensor | None
    """Over the slots after the call, (slots,), or with c behind, (slots + 1,)."""
    c: float
    by_v: float
    by_y: float


@dataclass(frozen=True)
class Folded:
    """A table folded for a field: what the field made of the rows, and a `Sum` or a `Turn` for each."""

    solved: Solved
    steps: Sequence[Any]
    slots: int = 0
    """How many the history has."""
    scales: Sequence[float] = ()
    """s of the state as it is carried with a history, before each row and behind the last, where it is 1."""


def folded(table: Table, field: Field, like: Tensor) -> Folded:
    """The table as the loop runs it, for a state like this; kept with the table."""

    def make() -> Folded:
        solved = field.solved(table.rows, like)
        if table.depth <= 1:
            return Folded(solved, sums(table, solved))
        rows, scales = carried(products(table, solved))
        held = slots(table.rows)
        return Folded(solved, turns(rows, held, like), held.count, scales)

    return kept(table, field, like, make)


def kept(table: Table, field: Field, like: Tensor, make: Callable[[], T]) -> T:
    """What `make` computes of a table for a field and a state like this, kept with the table where that is safe.

    Never as inference tensors, which no run outside inference mode could use.
    """
    by = field.solved_by(like)
    with torch.inference_mode(False):
        return make() if by is None else table.keep((make.__qualname__, by, like.dtype), make)


def sums(table: Table, solved: Solved) -> list[Sum]:
    """Equation (1), for a table of depth 1 at most."""
    found, s = list[Sum](), 1.0
    for row, scale, m_x, m_y in zip(table.rows, solved.scale, solved.m_x, solved.m_y, strict=True):
        first = row.b[0] if row.b else 0.0
        from_v = first * (m_x + row.f)  # (2) of `itoflow.table` put into (3): h_new is never needed by itself
        a, b, c = row.a + from_v * row.p, first * m_y, row.c + from_v * row.r
        p, r = row.p * scale * s, row.r * scale
        after = s * a
        if a == 0 or not 1 / _LARGEST_SCALE < abs(after) < _LARGEST_SCALE:
            keep, s = after, 1.0
        else:
            keep, s = 1.0, after
        found.append(Sum(_number(p), p != 1 or r != 0, r, keep, b / s, c / s, s))
    return found


def products(table: Table, solved: Solved) -> list[Product]:
    """Equation (2)."""
    found, units = list[Product](), list[float]()
    for i, (row, scale, m_x, m_y) in enumerate(zip(table.rows, solved.scale, solved.m_x, solved.m_y, strict=True)):
        q = tuple(weight * units[i - j] * scale for j, weight in enumerate(row.q, 1))
        from_v = (m_x + row.f) / scale
        unit = m_y if abs(m_y) >= abs(from_v) else from_v
        units.append(unit)
        by_v, by_y = (from_v / unit, m_y / unit) if unit else (0.0, 1.0)
        b = tuple(weight * units[i - j] for j, weight in enumerate(row.b))
        found.append(Product(row.p * scale, row.r * scale, row.a, row.c, by_v, by_y, q, b))
    return found


def carried(rows: list[Product]) -> tuple[list[Product], list[float]]:
    """The rows with the state as the network's input, where it is that but for its scale; and the scales."""
    scales = [1.0] * (len(rows) + 1)
    if all(row.p and not row.r and not any(row.q) for row in rows):
        scales[:-1] = [row.p for row in rows]
    found = [
        row._replace(
            p=row.p / here, a=row.a * after / here, c=row.c * after, b=tuple(weight * after for weight in row.b)
        )
        for row, (here, after) in zip(rows, pairwise(scales), strict=True)
    ]
    return found, scales


def turns(rows: list[Product], held: Slots, like: Tensor) -> list[Turn]:
    """`Product`s on slots."""
    found = list[Turn]()
    for i, (p, r, a, c, by_v, by_y, q, b) in enumerate(rows):
        slot, on_input, on_state = held.places[i], held.spread(i - 1, q), held.spread(i, b)
        if r:
            on_input[slot] = r
        early, forget = 0.0, False
        if r and c:
            early, forget, a, c = (c / a, False, a, 0.0) if a else (c, True, 1.0, 0.0)
        found.append(
            Turn(
                slot=slot,
                p=p,
                p_tensor=_number(p),
                apart=p != 1,
                q=_vector(on_input, like) if any(on_input) else None,
                r=r,
                early=early,
                a=a,
                forget=forget,
                b=_vector([*on_state, c] if c else on_state, like) if any(on_state) or c else None,
                c=c,
                by_v=by_v,
                by_y=by_y,
            )
        )
    return found


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _vector(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)
