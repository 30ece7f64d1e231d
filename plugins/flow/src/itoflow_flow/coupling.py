r"""Couplings: which x1 goes with which x0 within a batch.

A path runs from x0, data, to x1, noise or other data, and flow matching regresses its velocity. The velocity's
minimiser carries p_0 to p_1 for every joint law pi(x0, x1) with these two marginals; the one that matters is how
straight the paths of the minimiser are. A coupling draws from such a pi, given samples of both marginals.

What every coupling must keep is the marginals: choosing the nearest N of M > N points would train on another base than
the one that sampling starts from. `spread` takes x1's evenly instead, at random; the couplings here only permute them.

A third-party plugin adds a coupling by one class and one line in its `itoflow_couplings` hook:

    class Reversed(Coupling):
        def __call__(self, x0, x1, cond=None, *, generator=None):
            return spread(len(x0), len(x1), x0.device, generator).flip(0)

References:
    Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport (Tong et al., 2024),
    https://arxiv.org/abs/2302.00482, section 3.2.
    Multisample Flow Matching (Pooladian et al., 2023), https://arxiv.org/abs/2304.14772.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from itoflow import InputError, Spec


class Coupling(Spec, ABC):
    """Options of a coupling; called, it says which x1 goes with each x0."""

    kind: ClassVar[str] = "coupling"

    @abstractmethod
    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Indices (N,), int64, such that x1[indices] goes with x0 (N, *S), for x1 (M, *S) with any M >= 1.

        Each x1 is used N/M times on average over the generator's draws.

        Arguments:
            x0, x1: data units; for a Gaussian process, x1 is noise at the scale of its prior.
            cond: the conditions of x0, one row each.
            generator: draws whatever is left open.

        Raises:
            InputError: x1 is empty; and, of couplings by distance, x0 and x1 that are not finite or not of one shape S,
                or conditions of another number of rows than x0.
        """


class BlockCoupling(Coupling):
    """A coupling by squared distances, in random blocks of bounded size."""

    block: Annotated[int, Ge(1)] = 1024
    """Most pairs that are solved at once."""

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Indices (N,); of unequal sizes, x1's are first taken evenly at random."""
        cond = cond or {}
        partners = spread(len(x0), len(x1), x0.device, generator)
        for group in self.groups(cond, len(x0), x0.device):
            for part in blocks(len(group), self.block, x0.device, generator):
                rows = group[part]
                cost = self.priced(squared_distances(x0[rows], x1[partners[rows]]), cond, rows)
                partners[rows] = partners[rows][self.match(cost, generator)]
        return partners

    def groups(self, cond: Mapping[str, Tensor], n: int, device: torch.device) -> Iterator[Tensor]:
        """Index tensors that cover range(n), n examples; pairs stay within one of them."""
        yield torch.arange(n, device=device)

    def priced(self, cost: Tensor, cond: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Squared distances (N, N) of the examples `rows`, with what their conditions add."""
        return cost

    @abstractmethod
    def match(self, cost: Tensor, generator: torch.Generator | None) -> Tensor:
        """The column that goes with each row of cost (N, N), data units squared: (N,), int64."""


def spread(n: int, m: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """n indices into m, in random order, each used floor(n/m) or ceil(n/m) times: (n,), int64.

    Raises:
        InputError: m is 0 although n is not.
    """
    if n and not m:
        raise InputError("A coupling needs at least one x1.")
    rounds = []
    for begin in range(0, n, max(m, 1)):
        order = torch.randperm(m, generator=generator, device=device if generator is None else generator.device)
        rounds.append(order[: n - begin])
    if not rounds:
        return torch.empty(0, dtype=torch.int64, device=device)
    taken = torch.cat(rounds).to(device)
    return taken if len(rounds) == 1 else taken[spread(n, n, device, generator)]


def blocks(n: int, size: int, device: torch.device, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Random disjoint index tensors of nearly equal size, at most `size`, that cover range(n); none of n = 0."""
    if n == 0:
        return
    if n <= size:
        yield torch.arange(n, device=device)
        return
    yield from spread(n, n, device, generator).tensor_split(-(-n // size))


def squared_distances(x0: Tensor, x1: Tensor) -> Tensor:
    """|x0_i - x1_j|^2: (N, M), float64, data units squared.

    Raises:
        InputError: examples of two shapes; distances that are not finite.
    """
    if x0.shape[1:] != x1.shape[1:]:
        raise InputError(
            f"x0 and x1 must be of one shape. Given: examples of {tuple(x0.shape[1:])} and {tuple(x1.shape[1:])}."
        )
    a, b = x0.detach().flatten(1).to(torch.float64), x1.detach().flatten(1).to(torch.float64)
    squared = (a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T).clamp(min=0)
    if not bool(squared.isfinite().all()):
        raise InputError("The distances of x0 and x1 are not all finite: one of the two has NaN or infinite values.")
    return squared


def transport_cost(x0: Tensor, x1: Tensor) -> float:
    """mean_i |x0_i - x1_i|^2 of pairs, data units squared: what couplings lower, beside that of none."""
    return float((x0.detach() - x1.detach()).to(torch.float64).flatten(1).square().sum(1).mean())
