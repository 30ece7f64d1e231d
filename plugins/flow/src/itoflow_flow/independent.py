"""The coupling that is none: x0 and x1 are drawn independently, pi = p_0 p_1."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from itoflow_flow.coupling import Coupling, spread


class Independent(Coupling):
    """x1 as it comes, which is at random; p_t of a Gaussian process is exactly that of its SDE."""

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Indices (N,): the identity where sizes are equal, else a random even choice."""
        if len(x0) == len(x1):
            return torch.arange(len(x0), device=x0.device)
        return spread(len(x0), len(x1), x0.device, generator)
