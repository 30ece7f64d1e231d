r"""The options of a diffusion transformer, and for which data it can be built.

References:
    Scalable Diffusion Models with Transformers (Peebles and Xie, 2022), https://arxiv.org/abs/2212.09748, section 3.2.
    SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers (Ma et al., 2024),
    https://arxiv.org/abs/2401.08740.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import FiniteFloat, model_validator
from torch import nn

from itoflow import Backbone, DataSpec, IncompatibleError


class DiT(Backbone):
    """Transformer on patches of sequences (C, L) and images (C, H, W), adaLN-zero; class and vector conditions."""

    patch: Annotated[int, Ge(1)] = 2
    """Side of a patch, which becomes one token; it must divide the sides of the data."""
    width: Annotated[int, Ge(1)] = 128
    """Size of a token."""
    depth: Annotated[int, Ge(0)] = 4
    """Number of blocks."""
    heads: Annotated[int, Ge(1)] = 4
    """Attention heads; they share the width."""
    expansion: Annotated[FiniteFloat, Gt(0)] = 4.0
    """Hidden size of the perceptron in a block over the width."""
    positions: Literal["sincos", "rotary"] = "sincos"
    """Fixed sine-cosine vectors added to the tokens (DiT), or rotations of queries and keys (RoPE), which see distances
    only."""
    rotary_base: Annotated[FiniteFloat, Gt(1)] = 100.0
    """Rotary frequencies fall from 1 almost to 1 / rotary_base, radians per patch; long sequences have 10000."""
    norm_queries: bool = False
    """RMS normalisation of queries and keys, each head's, with learnt gains: keeps attention from saturating."""
    frequencies: Annotated[int, Ge(1)] = 128
    """Number of cosine and sine pairs that describe the time."""
    time_scale: Annotated[FiniteFloat, Gt(0)] = 1000.0
    """Frequencies are time_scale 10000^(-j / frequencies), radians per unit of t: a chain of 1000 steps as in DiT."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability with which a hidden value of a block's perceptron is dropped in training."""
    backend: str = "auto"
    """Attention backend by name; see `itoflow attention`."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> DiT:
        if self.width % self.heads:
            fit = [n for n in range(1, self.width + 1) if self.width % n == 0]
            nearest = min(fit, key=lambda n: abs(n - self.heads))
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}; {nearest} does")
        return self

    def build(self, data: DataSpec) -> nn.Module:
        """The network for sequences or images whose sides `patch` divides.

        Raises:
            IncompatibleError: the data have another shape; or the width or the heads are too odd for the positions.
        """
        from itoflow_dit.network import Transformer  # needs this class

        name, sides = type(self).__name__, data.shape[1:]
        if len(sides) not in (1, 2):
            raise IncompatibleError(
                f"{name} serves sequences (C, L) and images (C, H, W). Given: {data.shape}. "
                "Use the backbone `mlp` for vectors, `unet` for volumes."
            )
        if any(side % self.patch for side in sides):
            fit = [p for p in range(1, max(sides) + 1) if all(side % p == 0 for side in sides)]
            larger = (data.shape[0], *(side + -side % self.patch for side in sides))
            raise IncompatibleError(
                f"{name} cuts data into patches of side {self.patch}, which does not divide the sides of {data.shape}. "
                f"Use patch = {' or '.join(map(str, fit))}, or pad the data to {larger}."
            )
        where, what, size = "width", self.positions, self.width
        if self.positions == "rotary":
            where, size = "size of a head, width / heads,", self.width // self.heads
        factor = 2 * len(sides)  # a sine and a cosine for each axis
        if size % factor:
            raise IncompatibleError(
                f"{name} with {what} positions in {len(sides)} dimensions needs a {where} that {factor} divides. "
                f"Given: {size}. Use {size + -size % factor}."
            )
        return Transformer(self, data)
