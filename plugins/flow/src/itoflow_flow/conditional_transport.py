r"""Optimal transport that keeps the base of each condition: pairs may not, or not for free, cross conditions.

Plain minibatch transport gives each class the noise that lies near it, but sampling starts every class from all of the
noise. Here x1_j first gets the condition c_j of a random example, which keeps it independent of the condition; then

    minimise  sum_i |x0_i - x1_{pi(i)}|^2 + w d(c_i, c_{pi(i)})  over permutations pi.

For classes d is infinite where they differ: the problem falls apart into one per class, and each class sees the base
law exactly. For vectors d = 1 - cosine, and w is found by bisection so that a share `ratio` of all pairs costs no more
than keeping the random partner; small ratios mean a large w. Without conditions this is `optimal-transport`.

References:
    The Curse of Conditions: Analyzing and Improving Optimal Transport for Conditional Flow-Based Generation
    (Cheng and Schwing, 2025), https://arxiv.org/abs/2503.10636, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from itoflow import InputError
from itoflow_flow.optimal_transport import OptimalTransport


class ConditionalTransport(OptimalTransport):
    """Transport within classes, and between similar vectors."""

    ratio: Annotated[float, Gt(0), Lt(1)] = 0.01
    """Share of all pairs whose cost, with the penalty for other conditions, stays below that of the random partner."""

    def groups(self, cond: Mapping[str, Tensor], n: int, device: torch.device) -> Iterator[Tensor]:
        """The rows of each class, or all rows.

        Raises:
            InputError: conditions of another number of rows than n.
        """
        for name, values in cond.items():
            if len(values) != n:
                raise InputError(f"cond[{name!r}] must have a row for each of {n} x0. Given: {len(values)}.")
        if "class" not in cond:
            yield from super().groups(cond, n, device)
            return
        for value in cond["class"].unique():
            yield (cond["class"] == value).nonzero()[:, 0]

    def priced(self, cost: Tensor, cond: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """The cost, and w d for vectors."""
        return self.conditioned(cost, _cosine_distances(cond["vector"][rows])) if "vector" in cond else cost

    def conditioned(self, cost: Tensor, mismatch: Tensor) -> Tensor:
        """cost + w mismatch, both (N, N), with w such that a share `ratio` of it is at most the diagonal of cost."""
        keep = cost.diagonal()

        def share(w: float) -> float:
            return float((cost + w * mismatch <= keep).double().mean())

        low, high = 0.0, float(cost.mean()) or 1e-12
        most = 1e12 * high
        if share(low) <= self.ratio:
            return cost
        while share(high) > self.ratio and high < most:
            low, high = high, 2 * high
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if share(middle) > self.ratio else (low, middle)
        return cost + high * mismatch


def _cosine_distances(vectors: Tensor) -> Tensor:
    """1 - cosine of each pair of rows: (N, N), float64."""
    unit = torch.nn.functional.normalize(vectors.to(torch.float64), dim=1)
    return (1 - unit @ unit.T).clamp(min=0)
