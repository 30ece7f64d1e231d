r"""Convolutions of width 3 by Winograd's F(4x4, 3x3): the same sums with a quarter of the products.

A tile of 4x4 outputs is, of its 6x6 inputs d and the weights w of an input and an output channel,

    y = A^T [(G w G^T) * (B^T d B)] A,      summed over input channels inside the brackets.

Along one side d gives the coefficients of a polynomial, and G, B^T, A^T evaluate and interpolate at the points 0,
+-5/8, +-3/2 and infinity (Cook and Toom): with V_k the first k powers of these points,

    A^T = V_4^T,   G = V_3,   B^T = V_6^-T,   each place scaled so that the rows of G and B^T have norm 1.

So a convolution is 36 products of (tiles x in) and (in x out) matrices. The gradient of x is the same convolution of
that of y, by the weights turned about, and that of the weights G^T [(B^T d B)^T (A dy A^T)] G, summed over tiles.

On the way to and from the 36 places everything is a product of matrices too, which the libraries do well, and steps of
tensors do not: B^T and A for all tiles of up to `SIDE` positions at once, in one matrix each with zeros elsewhere.

References:
    Fast Algorithms for Convolutional Neural Networks (Lavin and Gray, 2015), https://arxiv.org/abs/1509.09308,
    section 4.
    Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks (Barabasz et al., 2018),
    https://arxiv.org/abs/1803.10986, for what points do to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itoflow_unet.layout import channels_together

P = ParamSpec("P")
T = TypeVar("T")

OUT, KERNEL, PLACES = 4, 3, 6
"""Outputs, weights and inputs of a tile, along a side."""
POINTS = 0.0, 0.625, -0.625, 1.5, -1.5
SIDE = 16
"""Positions along a side whose tiles are transformed by one matrix."""
PIECE = 2**21
"""Numbers of a transformed piece of a map, which is computed at once."""
FEW_CHANNELS, FEW_NUMBERS = 128, 2**13
"""With fewer channels on either side, or fewer numbers at a place (the tiles computed at once times the fewer
channels), little or nothing is gained."""
SLOW_PRODUCTS = 0.75
"""Nor where products of matrices run at less than this part of the pace of direct sums, as with matrix libraries that
leave a processor's widest instructions to others."""


def _once(make: Callable[P, T]) -> Callable[P, T]:
    """Computes a value once, on the CPU whatever torch's default device is, and outside inference mode."""

    def computed(*of: P.args, **options: P.kwargs) -> T:
        with torch.inference_mode(False), torch.device("cpu"):
            return make(*of, **options)

    return cast(Callable[P, T], lru_cache(wraps(make)(computed)))


class Conv2d(nn.Conv2d):
    """Torch's, by F(4x4, 3x3) where that is faster: on a CPU, in float32, channels together, no graph read."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, ...)."""
        if self._plain() and faster(x, self.weight):
            y: Tensor = _Convolution.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return y
        return super().forward(x)

    def _plain(self) -> bool:
        here = self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode
        return here == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def faster(x: Tensor, weight: Tensor) -> bool:
    """Whether F(4x4, 3x3) takes x (B, in, H, W), and takes less time than the direct sum."""
    if not channels_together(x) or torch.is_autocast_enabled("cpu") or not x.dtype == weight.dtype == torch.float32:
        return False
    (batch, inside, height, width), outside = x.shape, weight.shape[0]
    if inside != weight.shape[1] or height % OUT or width % OUT:
        return False
    tiles = batch * (min(height, SIDE) // OUT) * (min(width, SIDE) // OUT)
    narrow = min(inside, outside)
    return narrow >= FEW_CHANNELS and tiles * narrow >= FEW_NUMBERS and pace() >= SLOW_PRODUCTS


@_once
def pace() -> float:
    """Multiplications a second in products of matrices over those in direct sums, on this machine: measured once."""
    channels = FEW_CHANNELS
    x = torch.zeros(4, channels, SIDE, SIDE).float().contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(channels, channels, KERNEL, KERNEL).float().contiguous(memory_format=torch.channels_last)
    rows = torch.zeros(KERNEL * KERNEL * x[:, 0].numel(), channels).float()
    kinds: tuple[Callable[[], Tensor], ...] = (
        lambda: F.conv2d(x, weight, padding=1),
        lambda: rows @ weight[:, :, 0, 0],
    )
    best = [math.inf, math.inf]
    for _ in range(6):
        for kind, run in enumerate(kinds):
            start = time.perf_counter()
            run()
            best[kind] = min(best[kind], time.perf_counter() - start)
    return best[0] / best[1]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolved(x, evaluated(weight).mT, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        d_bias = dy.sum((0, 2, 3)) if of_bias else None
        if torch.is_grad_enabled():  # it will be differentiated again
            d_x = F.conv_transpose2d(dy, weight, padding=1) if of_x else None
            d_weight = F.conv2d(x.transpose(0, 1), dy.transpose(0, 1), padding=1).transpose(0, 1) if of_weight else None
            return d_x, d_weight, d_bias
        dy = dy.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", enabled=False):  # whatever the backward pass is called in
            d_weight = weight_gradient(x, dy) if of_weight else None
            del x  # it may have been computed again for this
            return convolved(dy, evaluated(weight.flip(2, 3))) if of_x else None, d_weight, d_bias


def convolved(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (B, in, H, W) by weights (6, 6, in, out) at the places."""
    (batch, _, height, width), outside = x.shape, weights.shape[-1]
    maps, pieces, back = x.permute(0, 2, 3, 1), _Pieces(x, outside), _matrices().back
    y = maps.new_empty(batch, height // OUT, OUT, width // OUT, OUT, outside)
    for at, rows, columns in pieces:
        examples, tiles = at.stop - at.start, rows.tiles * (at.stop - at.start) * columns.tiles
        places = pieces.spread(maps[at], rows.inputs, columns.inputs, 1)
        products = pieces.memory(2, PLACES, PLACES, tiles, outside)
        for place, weight, product in zip(places, weights, products, strict=True):
            torch.bmm(place, weight, out=product)
        lines = pieces.memory(0, OUT, PLACES, tiles * outside)
        torch.mm(back, products.view(PLACES, -1), out=lines.view(OUT, -1))
        outputs = pieces.memory(1, OUT, OUT, tiles * outside)
        torch.bmm(back.expand(OUT, -1, -1), lines, out=outputs)
        found = outputs.view(OUT, OUT, rows.tiles, examples, columns.tiles, outside).permute(3, 2, 0, 4, 1, 5)
        into = y[at, rows.outputs, :, columns.outputs]
        if bias is None:
            into.copy_(found)
        else:
            torch.add(found, bias, out=into)
    return y.view(batch, height, width, outside).permute(0, 3, 1, 2)


def weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """That of the weights, (out, in, 3, 3), from x (B, in, H, W) and the gradient of y (B, out, H, W)."""
    inside, outside = x.shape[1], dy.shape[1]
    maps, gradients, pieces = x.permute(0, 2, 3, 1), dy.permute(0, 2, 3, 1), _Pieces(x, outside)
    total = x.new_zeros(PLACES, PLACES, outside, inside)
    for at, rows, columns in pieces:
        places = pieces.spread(maps[at], rows.inputs, columns.inputs, 1)
        at_places = pieces.spread(gradients[at], rows.gradients, columns.gradients, 2)
        for part, place, gradient in zip(total, places, at_places, strict=True):
            part.baddbmm_(gradient.mT, place)
    d_weight = _matrices().weights.T @ total.view(PLACES * PLACES, -1)
    return d_weight.view(KERNEL, KERNEL, outside, inside).permute(2, 3, 0, 1)


def evaluated(weight: Tensor) -> Tensor:
    """G w G^T of (out, in, 3, 3): (6, 6, out, in)."""
    rows = weight.permute(2, 3, 0, 1).reshape(KERNEL * KERNEL, -1)
    return torch.mm(_matrices().weights, rows).view(PLACES, PLACES, *weight.shape[:2])


@dataclass(frozen=True)
class _Map:
    """A matrix from the positions of `where` along a side to the places of all tiles there."""

    where: slice
    by_place: Tensor
    """(6 n, positions), rows by place, then tile."""
    by_tile: Tensor
    """The same, rows by tile, then place."""


@dataclass(frozen=True)
class _Block:
    """Up to SIDE / 4 tiles along a side."""

    outputs: slice
    """Which tiles."""
    tiles: int
    inputs: _Map
    gradients: _Map
    """Of the outputs: A dy."""


@dataclass(frozen=True)
class _Matrices:
    inputs: Tensor
    """B^T, (6, 6) in float64."""
    gradients: Tensor
    """A, (6, 4) in float64."""
    back: Tensor
    """A^T, (4, 6)."""
    weights: Tensor
    """G along both sides, (36, 9)."""


@_once
def _matrices() -> _Matrices:
    infinity = torch.eye(PLACES, dtype=torch.float64)

    def powers(count: int) -> Tensor:
        finite = torch.vander(torch.tensor(POINTS, dtype=torch.float64), count, increasing=True)
        return torch.cat([finite, infinity[count - 1 : count, :count]])

    a, g, b = powers(OUT), powers(KERNEL), torch.linalg.inv(powers(PLACES)).T
    norm_b, norm_g = b.norm(dim=1, keepdim=True), g.norm(dim=1, keepdim=True)
    a, g, b = a * norm_b * norm_g, g / norm_g, b / norm_b
    return _Matrices(b, a, a.T.float().contiguous(), torch.kron(g, g).float())


@_once
def _blocks(side: int) -> tuple[_Block, ...]:
    found = []
    for start in range(0, side, SIDE):
        stop = min(start + SIDE, side)
        tiles, matrices = (stop - start) // OUT, _matrices()
        around = slice(max(0, start - 1), min(side, stop + 1))
        inputs = torch.zeros(PLACES, tiles, stop - start + 2, dtype=torch.float64)
        gradients = torch.zeros(PLACES, tiles, stop - start, dtype=torch.float64)
        for n in range(tiles):
            inputs[:, n, OUT * n : OUT * n + PLACES] = matrices.inputs
            gradients[:, n, OUT * n : OUT * (n + 1)] = matrices.gradients
        inputs = inputs[..., around.start - start + 1 : around.stop - start + 1]  # beyond the map there are zeros
        maps = (_map(around, inputs), _map(slice(start, stop), gradients))
        found.append(_Block(slice(start // OUT, stop // OUT), tiles, *maps))
    return tuple(found)


def _map(where: slice, matrix: Tensor) -> _Map:
    return _Map(where, *(m.flatten(0, 1).float().contiguous() for m in (matrix, matrix.transpose(0, 1))))


class _Pieces:
    """Some examples of a block of tiles at a time, and memory for three transforms of such a piece."""

    def __init__(self, x: Tensor, outside: int) -> None:
        self.batch, inside, height, width = x.shape
        self.rows, self.columns = _blocks(height), _blocks(width)
        of_example = PLACES**2 * self.rows[0].tiles * self.columns[0].tiles * max(inside, outside)
        self.examples = max(1, min(self.batch, PIECE // of_example))
        self.buffers = [x.new_empty(self.examples * of_example) for _ in range(3)]

    def __iter__(self) -> Iterator[tuple[slice, _Block, _Block]]:
        for start in range(0, self.batch, self.examples):
            for rows in self.rows:
                for columns in self.columns:
                    yield slice(start, min(start + self.examples, self.batch)), rows, columns

    def memory(self, number: int, *shape: int) -> Tensor:
        """A part of one of the buffers."""
        return self.buffers[number][: torch.Size(shape).numel()].view(shape)

    def spread(self, maps: Tensor, rows: _Map, columns: _Map, into: int) -> Tensor:
        """(B, H, W, C) to (6, 6, tiles, C), tiles by row, example and column; buffer 0 is used on the way."""
        here = maps[:, rows.where, columns.where]
        batch, _, width, channels = here.shape
        lines = self.memory(0, batch, len(rows.by_place), width * channels)
        torch.bmm(rows.by_place.expand(batch, -1, -1), here.flatten(2), out=lines)
        places = self.memory(into, len(rows.by_place), batch, len(columns.by_tile), channels)
        matrix = columns.by_tile.expand(batch, -1, -1)
        for line, place in zip(lines.unflatten(2, (width, channels)).unbind(1), places, strict=True):
            torch.bmm(matrix, line, out=place)
        return places.view(PLACES, -1, PLACES, channels).transpose(1, 2)
