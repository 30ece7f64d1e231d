r"""Minibatch optimal transport: the pairing of least total squared distance, found exactly.

    minimise  sum_i |x0_i - x1_{pi(i)}|^2  over permutations pi

Only -2 sum_i <x0_i, x1_{pi(i)}> depends on pi, so the pairing with standard noise is that with the prior at any scale.
The time is O(N^3) at worst, measured 2 ms for N = 256 and 0.1 s for N = 1024 on one core; a batch that is larger than
`block` is cut into random blocks, each paired by itself.

With a condition the pairing depends on the class of x0, so that the noise which a class sees in training is not the one
that sampling starts from: use `conditional-optimal-transport` there.

References:
    Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport (Tong et al., 2024),
    https://arxiv.org/abs/2302.00482, section 3.2.3.
    On implementing 2D rectangular assignment algorithms (Crouse, 2016), what scipy implements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from itoflow_flow.coupling import Coupling, blocks, spread, squared_distances


class OptimalTransport(Coupling):
    """The permutation of least total squared distance, per block."""

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
        partners = spread(len(x0), len(x1), x0.device, generator)
        for rows in blocks(len(x0), self.block, x0.device, generator):
            partners[rows] = partners[rows][assignment(squared_distances(x0[rows], x1[partners[rows]]))]
        return partners


def assignment(cost: Tensor) -> Tensor:
    """The permutation of least total cost for cost (N, N): the column of each row, (N,), int64, on cost's device."""
    columns = linear_sum_assignment(cost.cpu().numpy())[1]
    return torch.from_numpy(columns).to(cost.device)
