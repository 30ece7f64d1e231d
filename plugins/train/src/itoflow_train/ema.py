"""The moving average of the weights, with a decay that rises.

    average <- d average + (1 - d) weights,   d = min(decay, (1 + n) / (10 + n)) after n updates, 0 at the first

References:
    Acceleration of Stochastic Approximation by Averaging (Polyak and Juditsky, 1992).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of the module that `update_parameters` averages into."""

    @torch.no_grad()
    def average(averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        for mean, weight in zip(averages, weights, strict=True):
            mean.lerp_(weight, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(module, multi_avg_fn=average, use_buffers=False)
