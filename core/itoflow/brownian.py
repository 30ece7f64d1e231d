r"""Brownian motion as a function: any stretch of one path, in any order, from a seed.

The path B(s), s >= 0, is built so that no value depends on what else is asked for. The half-line is cut into octaves
[2^k, 2^(k+1)], whose increments are independent; inside one, the midpoint of a stretch of width w between known ends is

    B(m) = (B(l) + B(r)) / 2 + sqrt(w) / 2 xi,   xi ~ N(0, 1),                                 (1)

Levy's construction, with every xi a function of the seed and its place in the tree. After `depth` halvings (1) is
used once more, for the time asked for instead of the midpoint. So the law is exact at all times that lie in different
leaves, and the depth is such that those of one run do; two runs that ask for the same time get the same value. A
sampler whose noise is an increment of such a path follows it however many steps it takes. Cutting into octaves spends
the same effort on a noise of size 1e-6 as on one of size 1, as diffusion times need.

An increment is a sum of the xi on the ways to both ends, with weights that are numbers: it is formed in the tensor it
is wanted in with one more for the xi, and nothing of the size of a sample is kept from one to the next.

References:
    Le mouvement brownien plus fort que le theoreme central limite (Levy, 1940), for (1).
    Scalable Gradients for Stochastic Differential Equations (Li et al., 2020), https://arxiv.org/abs/2001.01328,
    section 4, the virtual Brownian tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from itoflow.noise import Generators, check, fill, generators

DEPTH = 20
"""Halvings of an octave, unless two times of one run need more to be apart."""
_FORGOTTEN = 64
"""Octaves this far below another add less than float64 resolves."""
_MASK = (1 << 64) - 1
Kind = Literal["whole", "middle", "leaf"]
_KINDS = get_args(Kind)


class Place(NamedTuple):
    """Of one xi in the tree.

    Arguments:
        octave: k.
        node: of the stretch in the octave's binary tree, 1 the whole, 2 n and 2 n + 1 the halves of n.
        kind: whole, the increment over the octave; middle, of the midpoint of a stretch; leaf, of a time in one.
    """

    octave: int
    node: int = 1
    kind: Kind = "whole"


class Brownian:
    """One path for each sample, of which stretches are drawn one after the other.

    Arguments:
        generator: gives the seed, one number drawn at once; one path for the batch, or one per sample.
        readings: all times at which the path will be asked for; they set the depth.
        like: a tensor with the shape, dtype and device of the noise.
    """

    def __init__(self, generator: Generators, readings: Sequence[float], like: Tensor) -> None:
        given = generators(generator, like)
        self._roots = [int(torch.randint(2**63 - 1, (), generator=g, device=g.device)) for g in given]
        self._streams = [torch.Generator(g.device) for g in given]
        self._one = not isinstance(generator, Sequence)
        self._depth = _depth(readings)

    def increment(self, start: float, end: float, out: Tensor) -> Tensor:
        """(B(end) - B(start)) / sqrt(end - start) in `out`: standard normal, start < end."""
        weights, size = self._weights(start, end), math.sqrt(end - start)
        xi = torch.empty_like(out)
        out.zero_()
        for place, weight in weights.items():
            out.add_(self._xi(place, xi), alpha=weight / size)
        return out

    def _weights(self, start: float, end: float) -> dict[Place, float]:
        """B(end) - B(start) is the sum of these places' xi, times what they are given."""
        low, high = _octave(start), _octave(end)
        found = self._within(end)
        if low >= high - _FORGOTTEN:
            for place, weight in self._within(start).items():
                found[place] = found.get(place, 0.0) - weight
        for k in range(max(low, high - _FORGOTTEN), high):
            found[Place(k)] = found.get(Place(k), 0.0) + 2 ** (k / 2)
        return found

    def _within(self, s: float) -> dict[Place, float]:
        """B(s) - B(2^k) for s in the octave [2^k, 2^(k+1)), as `_weights`.

        A value between two ends is a sum of both, (1) says what an end that is a midpoint is a sum of, and so on from
        the leaf up to the octave, at whose lower end the value is 0.
        """
        k, fraction = _octave(s), _fraction(s)
        if fraction == 0:
            return {}
        node, turns = 1, list[bool]()
        for _ in range(self._depth):
            fraction, right = 2 * fraction % 1, 2 * fraction >= 1
            turns.append(right)
            node = 2 * node + right
        scale, width = 2 ** (k / 2), 0.5**self._depth
        found = {Place(k, node, "leaf"): scale * math.sqrt(fraction * (1 - fraction) * width)}
        low, high = 1 - fraction, fraction
        for right in reversed(turns):
            node, width, middle = node // 2, 2 * width, low if right else high
            found[Place(k, node, "middle")] = scale * middle * math.sqrt(width) / 2
            low, high = (middle / 2, high + middle / 2) if right else (low + middle / 2, middle / 2)
        found[Place(k)] = scale * high
        return found

    def _xi(self, place: Place, out: Tensor) -> Tensor:
        """Standard normal noise, a function of the seed and the place."""
        number = _mixed(_mixed(place.octave & _MASK) ^ place.node ^ _KINDS.index(place.kind) << 62)
        for stream, root in zip(self._streams, self._roots, strict=True):
            stream.manual_seed(_mixed(root ^ number))
        return fill(out, self._streams[0] if self._one else self._streams)


class Noise:
    """The z of each row of a table: drawn by itself, or a stretch of a Brownian motion where the row has a clock.

    Arguments:
        generator: as `itoflow.noise.normal` takes it.
        clocks: of the rows, None where z is drawn by itself.
        like: a tensor with the shape, dtype and device of the noise.

    Raises:
        InputError: see `itoflow.noise.check`.
    """

    def __init__(self, generator: Generators, clocks: Sequence[tuple[float, float] | None], like: Tensor) -> None:
        check(generator, len(like))
        self._generator, self._clocks = generator, clocks
        readings = [s for clock in clocks if clock is not None for s in clock]
        self._path = Brownian(generator, readings, like) if readings else None

    def draw(self, i: int, out: Tensor) -> Tensor:
        """z of row i in `out`."""
        if self._path is None or (clock := self._clocks[i]) is None:
            return fill(out, self._generator)
        return self._path.increment(*clock, out)


def _octave(s: float) -> int:
    """k with 2^k <= s < 2^(k+1); far below all others for s = 0."""
    return math.frexp(s)[1] - 1 if s > 0 else -(2**20)


def _fraction(s: float) -> float:
    """How far s is into its octave, in [0, 1)."""
    return 2 * math.frexp(s)[0] - 1 if s > 0 else 0.0


def _depth(readings: Sequence[float]) -> int:
    """Halvings that put all readings into different leaves."""
    places = sorted({(_octave(s), _fraction(s)) for s in readings})
    gaps = [b - a for (k, a), (j, b) in pairwise(places) if k == j]
    return max([DEPTH, *(math.ceil(-math.log2(gap)) for gap in gaps)])


def _mixed(value: int) -> int:
    """A bijection of 64 bits without visible pattern: the finaliser of SplitMix64 (Steele et al., 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
