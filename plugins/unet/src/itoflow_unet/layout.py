"""How a map lies in memory, where that may be asked."""

from __future__ import annotations

import torch
from torch import Tensor

from itoflow.transforms import into_graph, under_func


def channels_together(x: Tensor) -> bool:
    """Whether x (B, C, H, W) lies on a CPU with the channels of a pixel together.

    False inside what sees plain steps only: what reads them into a graph, torch.func, forward-mode differentiation.
    """
    if into_graph() or torch.autograd.forward_ad._current_level >= 0 or under_func():
        return False
    return x.device.type == "cpu" and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
