r"""The method that is optimised, in the numbers that descent moves: steps of w = asinh(1/s), corrections, c and S.

With s = tan theta, beta_kj of an exponential Adams predictor of order p and its corrector of order p + 1 in one, in the
variable phi = asinh((1/c) / (1/s + 1/S)), a step is

    x_(k+1) = x_k + sum_j b_kj F_(k-j),   b_kj = beta_kj + (theta_k - theta_(k+1)) delta_kj,   sum_j delta_kj = 0,

the last one to theta = 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Entry = dict[str, Any]
"""A method as it is stored: `order`, `w` after the first, `phi` = (c, S), `delta`."""
NODES = 24
DEPTH = 4
"""How far back the corrections reach."""


def angles(steps: Tensor, start: float) -> Tensor:
    """theta_0 = `start` to theta_n = 0, from the logarithms of the n - 1 steps in w, counted from s = inf."""
    w = torch.cumsum(steps.exp(), 0)
    return torch.cat([torch.tensor([start]), torch.atan(1 / torch.sinh(w)), torch.zeros(1)])


def phi_of(theta: Tensor, c: Tensor, S: Tensor) -> Tensor:
    return torch.asinh(theta.sin() / (theta.cos() + theta.sin() / S) / c)


def coefficients(theta: Tensor, order: int, deltas: Tensor, c: Tensor, S: Tensor) -> Tensor:
    """b, (n, depth); deltas are (n, depth - 1), depth at least order + 1."""
    depth = deltas.shape[1] + 1
    n, phi = len(theta) - 1, phi_of(theta, c, S)
    i = torch.arange(1, NODES)
    off = i / (4 * i * i - 1.0).sqrt()
    jacobi = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    x, measure = jacobi.eigenvalues, 2 * jacobi.eigenvectors[0] ** 2
    low, high = phi[:-1, None], phi[1:, None]
    at = (low + high) / 2 + (high - low) / 2 * x
    q = c * at.sinh()
    density = -c * at.cosh() / ((1 - q / S) ** 2 + q * q) * measure * (high - low) / 2

    def beta(i: Tensor, back: range) -> list[Tensor]:
        """Of the steps i, through the values `back` of them."""
        found = []
        for j in back:
            basis = torch.ones(len(i), NODES)
            for m in back:
                if m != j:
                    basis = basis * (at[i] - phi[i - m, None]) / (phi[i - j, None] - phi[i - m, None])
            found.append((basis * density[i]).sum(1))
        return found

    rows, missed = [], torch.zeros(1, depth)
    for k in range(1, min(order, n) + 1):  # the first rows alone, then all that have full history at once
        i = torch.arange(k - 1, k if k < order else n)
        none = [torch.zeros(len(i))] * (depth - k - 1)
        predictor, corrector = beta(i, range(k)), beta(i, range(-1, k))
        predicted = torch.stack([*predictor, *none, torch.zeros(len(i))], 1)
        behind = torch.stack([torch.zeros(len(i)), *predictor, *none], 1)
        rows.append((predicted, torch.stack([*corrector, *none], 1) - behind))
    predicted, missed = (torch.cat(parts) for parts in zip(*rows, strict=True))
    missed = torch.cat([torch.zeros(1, depth), missed[:-1]])
    used = (torch.arange(n)[:, None] >= torch.arange(1, depth)).double() * deltas
    h = (theta[:-1] - theta[1:])[:, None]
    return predicted + missed + h * torch.cat([-used.sum(1, keepdim=True), used], 1)


def run(target: Any, x: Tensor, theta: Tensor, b: Tensor) -> Tensor:
    """The endpoint of the method."""
    history: list[Tensor] = []
    for k in range(len(b)):
        alpha, sigma = theta[k].cos(), theta[k].sin()
        x0 = target.denoise(x, alpha, sigma)
        history = [sigma * x0 - alpha / sigma * (x - alpha * x0), *history][: b.shape[1]]
        x = x + torch.tensordot(b[k, : len(history)], torch.stack(history), 1)
    return x


def unpack(entry: Entry) -> tuple[Tensor, int, Tensor, Tensor, Tensor]:
    """Logarithms of the steps, order, deltas, c and S."""
    w, order = torch.tensor([0.0, *entry["w"]]), entry["order"]
    deltas = torch.tensor(entry["delta"]) if entry["delta"] else torch.zeros(len(w), order)
    return w.diff().log(), order, deltas, *map(torch.tensor, entry["phi"])


def pack(steps: Tensor, order: int, deltas: Tensor | None, c: Tensor, S: Tensor) -> Entry:
    delta: list[list[float]] = []
    if deltas is not None:
        used = torch.arange(len(deltas))[:, None] >= torch.arange(1, deltas.shape[1] + 1)
        delta = (used.double() * deltas).tolist()
    return {"order": order, "w": torch.cumsum(steps.exp(), 0).tolist(), "phi": [float(c), float(S)], "delta": delta}


def even(n: int, order: int, last: float, c: float, S: float) -> Entry:
    """Uniform in phi, from s = inf to s = last; no delta."""
    ends = phi_of(torch.tensor([math.pi / 2, math.atan(last)]), torch.tensor(c), torch.tensor(S))
    q = c * torch.linspace(float(ends[0]), float(ends[1]), n).sinh()
    w = torch.asinh((1 - q / S) / q)[1:]
    return {"order": order, "w": w.tolist(), "phi": [c, S], "delta": torch.zeros(n, DEPTH).tolist()}
