r"""The transformer: patches to tokens, blocks that time and condition modulate, tokens to patches.

    e = W_2 SiLU(W_1 [cos(w t), sin(w t)]) + class embedding + vector embedding
    h = W_in patches(x) (+ positions)
    block:  h <- h + gate_1(e) Attention(LayerNorm(h) (1 + scale_1(e)) + shift_1(e))                            (1)
            h <- h + gate_2(e) MLP(LayerNorm(h) (1 + scale_2(e)) + shift_2(e))                                  (2)
    y = patches^-1(W_out [LayerNorm(h) (1 + scale(e)) + shift(e)])

scale, shift and gate are linear in SiLU(e), in one product for all blocks, and start at zero, as does W_out: every
block starts as the identity, and the network as y = 0 (adaLN-zero). LayerNorms have no weights of their own.

References:
    Scalable Diffusion Models with Transformers (Peebles and Xie, 2022), https://arxiv.org/abs/2212.09748, section 3.2.
    Scaling Vision Transformers to 22 Billion Parameters (Dehghani et al., 2023), https://arxiv.org/abs/2302.05442,
    section 2, for normalised queries and keys; by the root mean square as in Stable Diffusion 3 (Esser et al., 2024),
    https://arxiv.org/abs/2403.03206, section 5.3.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from itoflow import DataSpec
from itoflow.attention import attention
from itoflow.embedding import Embedding, Sinusoids
from itoflow_dit.dit import DiT
from itoflow_dit.positions import rotary, rotate, sincos

_EPSILON = 1e-6
"""Added to the variance in every normalisation."""


class Transformer(nn.Module):
    """See the module's formula; net(x, t, cond) with x (B, C, L) or (B, C, H, W), t (B,)."""

    positions: Tensor | None
    turn: Tensor | None

    def __init__(self, spec: DiT, data: DataSpec) -> None:
        super().__init__()
        width, patch, sides = spec.width, spec.patch, data.shape[1:]
        self.patches = {f"p{i}": patch for i in range(len(sides))}
        self.grid = tuple(side // patch for side in sides)
        size = data.shape[0] * patch ** len(sides)
        exponents = -torch.arange(spec.frequencies, dtype=torch.float64) / spec.frequencies
        frequencies = (spec.time_scale * 10000.0**exponents).float()
        self.embed = Embedding(Sinusoids(frequencies), width, data)
        rotates = spec.positions == "rotary"
        turn = rotary(self.grid, width // spec.heads, spec.rotary_base) if rotates else None
        self.register_buffer("turn", turn, persistent=False)
        self.register_buffer("positions", None if rotates else sincos(self.grid, width), persistent=False)
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.leave = nn.Linear(width, size)
        self.modulation = nn.Linear(width, (6 * spec.depth + 2) * width)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.embed.first, self.embed.second, self.embed.label):
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """(B, C, L) or (B, C, H, W)."""
        e = self.embed(t, cond)
        h = self.enter(self._patches(x))
        if self.positions is not None:
            h = h + self.positions
        parts = iter(rearrange(self.modulation(nn.functional.silu(e)), "b (k w) -> k b 1 w", w=h.shape[-1]))
        for block in self.blocks:
            h = block(h, [next(parts) for _ in range(6)], self.turn)
        y: Tensor = self.leave(modulate(h, next(parts), next(parts)))
        return self._joined(y)

    def _patches(self, x: Tensor) -> Tensor:
        """(B, N, patch values); tokens in row-major order of the grid."""
        if len(self.grid) == 1:
            return rearrange(x, "b c (l p0) -> b l (c p0)", **self.patches)
        return rearrange(x, "b c (h p0) (w p1) -> b (h w) (c p0 p1)", **self.patches)

    def _joined(self, y: Tensor) -> Tensor:
        """The inverse of `_patches`."""
        if len(self.grid) == 1:
            return rearrange(y, "b l (c p0) -> b c (l p0)", **self.patches)
        return rearrange(y, "b (h w) (c p0 p1) -> b c (h p0) (w p1)", h=self.grid[0], **self.patches)


class Block(nn.Module):
    """Equations 1 and 2."""

    def __init__(self, spec: DiT) -> None:
        super().__init__()
        width, hidden = spec.width, max(1, round(spec.expansion * spec.width))
        self.attention = SelfAttention(spec)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(approximate="tanh"),
            nn.Dropout(spec.dropout),
            nn.Linear(hidden, width),
        )

    def forward(self, h: Tensor, parts: list[Tensor], turn: Tensor | None) -> Tensor:
        """h: (B, N, D); parts: scale, shift and gate of the two equations, (B, 1, D) each."""
        scale, shift, gate, scale_2, shift_2, gate_2 = parts
        h = torch.addcmul(h, gate, self.attention(modulate(h, scale, shift), turn))
        return torch.addcmul(h, gate_2, self.mlp(modulate(h, scale_2, shift_2)))


class SelfAttention(nn.Module):
    """Attention of every token to all, in heads."""

    def __init__(self, spec: DiT) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(spec.width, 3 * spec.width), nn.Linear(spec.width, spec.width)
        self.heads, self.backend, size = spec.heads, spec.backend, spec.width // spec.heads
        self.norm_q = RMSNorm(size) if spec.norm_queries else nn.Identity()
        self.norm_k = RMSNorm(size) if spec.norm_queries else nn.Identity()

    def forward(self, h: Tensor, turn: Tensor | None) -> Tensor:
        """h: (B, N, D); turn: rotary angles of the tokens, or None."""
        q, k, v = rearrange(self.qkv(h), "b n (three h k) -> three b h n k", three=3, h=self.heads)
        q, k = self.norm_q(q), self.norm_k(k)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        out: Tensor = self.out(rearrange(attention(q, k, v, backend=self.backend), "b h n k -> b n (h k)"))
        return out


class RMSNorm(nn.Module):
    """x gain / sqrt(mean x^2) over the last axis, in x's dtype, under autocast too."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size)."""
        return nn.functional.rms_norm(x, x.shape[-1:], self.gain.to(x.dtype), _EPSILON)


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm(h) (1 + scale) + shift."""
    return torch.addcmul(shift, nn.functional.layer_norm(h, h.shape[-1:], eps=_EPSILON), 1 + scale)
