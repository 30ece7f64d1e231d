r"""What a network knows besides x, as one vector: the time and the conditions of a data spec.

    e = W_2 SiLU(W_1 phi(t)) + class embedding + vector embedding,   phi(t) = [cos(w_j t), sin(w_j t)]

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239, appendix B.
    Attention Is All You Need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762, section 3.5, for phi.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from itoflow.backbone import DataSpec


class Features(nn.Module):
    """phi: t (B,) to (B, size).

    Its buffers stay float32 in a network of half precision, in which an angle of 1000 is known to 4 radians.
    """

    size: int

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What moves and converts a module, without conversions to half precision."""
        given = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, after in list(self.named_buffers(recurse=False)):
            if after.is_floating_point() and after.itemsize < 4:
                self._buffers[name] = given[name].to(after.device, torch.float32)
        return self


class Sinusoids(Features):
    """phi: t (B,) to (B, 2 n).

    Arguments:
        frequencies: w (n,), radians per unit of t; no part of the state.
        cosine_first: cosines before sines.
    """

    frequencies: Tensor

    def __init__(self, frequencies: Tensor, *, cosine_first: bool = True) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.size, self.cosine_first = 2 * len(frequencies), cosine_first

    def forward(self, t: Tensor) -> Tensor:
        """(B, 2 n)."""
        angles = t[:, None] * self.frequencies
        parts = (angles.cos(), angles.sin()) if self.cosine_first else (angles.sin(), angles.cos())
        return torch.cat(parts, dim=1)


class Embedding(nn.Module):
    """e (B, width), of t (B,) and the conditions of the data: class, vector, both or none.

    Arguments:
        features: phi.
        width: of e.
        data: says which conditions there are.
    """

    def __init__(self, features: Features, width: int, data: DataSpec) -> None:
        super().__init__()
        self.features = features
        self.first, self.second = nn.Linear(features.size, width), nn.Linear(width, width)
        self.label = nn.Embedding(data.classes, width) if data.classes is not None else None
        self.vector = nn.Linear(data.vector, width) if data.vector is not None else None

    def forward(self, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """(B, width); cond as a network gets it, `class` (B,) of whole numbers and `vector` (B, V)."""
        dtype = self.first.weight.dtype
        e: Tensor = self.second(silu(self.first(self.features(t).to(dtype))))
        if self.label is not None:
            e = e + self.label(cond["class"])
        if self.vector is not None:
            e = e + self.vector(cond["vector"].to(dtype))
        return e
