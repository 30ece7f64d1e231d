"""The sizes of the papers; each is a `DiT` with other defaults, and takes any `patch`: DiT-XL/2 has 2.

References:
    Scalable Diffusion Models with Transformers (Peebles and Xie, 2022), https://arxiv.org/abs/2212.09748, table 1.
    SiT (Ma et al., 2024), https://arxiv.org/abs/2401.08740, table 1: the same networks.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge

from itoflow_dit.dit import DiT


class DiTS(DiT):
    """DiT-S and SiT-S: 12 blocks of width 384, 6 heads."""

    width: Annotated[int, Ge(1)] = 384
    depth: Annotated[int, Ge(0)] = 12
    heads: Annotated[int, Ge(1)] = 6


class DiTB(DiT):
    """DiT-B and SiT-B: 12 blocks of width 768, 12 heads."""

    width: Annotated[int, Ge(1)] = 768
    depth: Annotated[int, Ge(0)] = 12
    heads: Annotated[int, Ge(1)] = 12


class DiTL(DiT):
    """DiT-L and SiT-L: 24 blocks of width 1024, 16 heads."""

    width: Annotated[int, Ge(1)] = 1024
    depth: Annotated[int, Ge(0)] = 24
    heads: Annotated[int, Ge(1)] = 16


class DiTXL(DiT):
    """DiT-XL and SiT-XL: 28 blocks of width 1152, 16 heads."""

    width: Annotated[int, Ge(1)] = 1152
    depth: Annotated[int, Ge(0)] = 28
    heads: Annotated[int, Ge(1)] = 16
