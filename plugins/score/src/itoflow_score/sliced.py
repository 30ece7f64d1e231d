r"""Sliced score matching: implicit score matching on random directions v, E[v v'] = I.

    loss = w(t) mean_v (|s|^2 + 2 v' (ds/dx) v) / D,                                                    (1)
    loss = w(t) mean_v ((v' s)^2 + 2 v' (ds/dx) v) / D   with variance_reduced=False,                   (2)

equations 8 and 7 of the paper. Both have the mean of the exact loss, at one backward call a direction.

References:
    Sliced Score Matching: A Scalable Approach to Density and Score Estimation (Song et al., 2019),
    https://arxiv.org/abs/1905.07088.
"""

from __future__ import annotations

from typing import Annotated, cast

import torch
from annotated_types import Ge
from torch import Tensor

from itoflow.divergence import ProbeName, draw_probes
from itoflow_score.implicit import ImplicitScoreMatching


class SlicedScoreMatching(ImplicitScoreMatching):
    """Equation (1) or (2); its minimiser is the exact score."""

    probes: Annotated[int, Ge(1)] = 1
    """Directions for each example."""
    law: ProbeName = "rademacher"
    """Law of the directions."""
    variance_reduced: bool = True
    """Take |s|^2, which is known, instead of its estimate on the directions."""

    def _probes(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        return draw_probes(self.law, self.probes, x, generator)

    def _square(self, s: Tensor, probes: Tensor | None) -> Tensor:
        if self.variance_reduced:
            return super()._square(s, probes)
        return (cast(Tensor, probes) * s).flatten(2).sum(2).square().mean(0)
