r"""Minibatch optimal transport: the pairing of least total squared distance, found exactly.

    minimise  sum_i |x0_i - x1_{pi(i)}|^2  over permutations pi

Only -2 sum_i <x0_i, x1_{pi(i)}> depends on pi, so the pairing with standard noise is that with the prior at any scale.
The time is O(N^3) at worst, measured 8 ms for N = 256 and 0.36 s for N = 1024 on one core; a batch that is larger than
`block` is cut into random blocks, each paired by itself.

With a condition the pairing depends on the class of x0, so that the noise which a class sees in training is not the one
that sampling starts from: use `conditional-optimal-transport` there.

References:
    Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport (Tong et al., 2024),
    https://arxiv.org/abs/2302.00482, section 3.2.3.
    On implementing 2D rectangular assignment algorithms (Crouse, 2016), what scipy implements.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from itoflow_flow.coupling import BlockCoupling


class OptimalTransport(BlockCoupling):
    """The permutation of least total squared distance, per block."""

    def match(self, cost: Tensor, generator: torch.Generator | None) -> Tensor:
        """The assignment."""
        return assignment(cost)


def assignment(cost: Tensor) -> Tensor:
    """The permutation of least total cost for cost (N, N): the column of each row, (N,), int64, on cost's device."""
    columns = linear_sum_assignment(cost.cpu().numpy())[1]
    return torch.from_numpy(columns).to(cost.device)
