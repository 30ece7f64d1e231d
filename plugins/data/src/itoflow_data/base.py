"""Data sets: named sources of examples, in data units, cut into a train and a test part.

A source is a spec, so it is options and no data: naming one loads nothing, and a recipe can hold one. What it loads is
an `Examples`. A third-party plugin adds a data set by one class and one line in its `itoflow_datasets` hook:

    class Interval(DataSource):
        n: Annotated[int, Gt(0)] = 1000

        @property
        def spec(self) -> DataSpec:
            return DataSpec(shape=(1,), std=3**-0.5)

        def load(self, split: Split) -> Examples:
            x = np.random.default_rng(split_index(split)).uniform(-1, 1, size=(self.n, 1))
            return Examples(torch.from_numpy(x.astype(np.float32)))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from itoflow import DataSpec, InputError, OptionError, Spec, SpecError
from itoflow.errors import listing
from itoflow.registry import available, resolve

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples and their conditions.

    Arguments:
        x: (N, *S) float32, data units.
        cond: `class`, (N,) int64, and `vector`, (N, V) float32, where the data set has them.

    Raises:
        InputError: x is not float32 with a batch axis, or a condition does not have one value per example.
    """

    x: Tensor
    cond: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.x.shape)
        if len(shape) < 2 or self.x.dtype != torch.float32:
            raise InputError(f"x must be float32 of shape (N, *S). Given: {self.x.dtype} of shape {shape}.")
        for name, value in self.cond.items():
            if value.shape[:1] != shape[:1]:
                raise InputError(f"cond[{name!r}] must have {shape[0]} rows, as x. Given shape: {tuple(value.shape)}.")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor) -> Examples:
        """The examples of a slice or of an index tensor."""
        return Examples(self.x[index], {name: value[index] for name, value in self.cond.items()})

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on a device."""
        return Examples(self.x.to(device), {name: value.to(device) for name, value in self.cond.items()})

    def check(self, spec: DataSpec) -> None:
        """Refuse examples that are not what `spec` describes.

        Raises:
            InputError: says which of shape, finiteness and conditions is wrong.
        """
        spec.check(self.x)
        spec.conditions(self.cond, len(self), self.x.device)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, *, start: int = 0
    ) -> Iterator[Examples]:
        """Full batches without end, from one pass after the other, each pass in a new random order.

        A batch may reach from one pass into the next, so no example is dropped, each is used equally often, and a batch
        may be larger than the data set.

        Arguments:
            generator: orders the passes; None is torch's default generator. Only this iterator should draw from it.
            start: number of batches to skip; so an interrupted run goes on, with a generator in its first state.

        Raises:
            InputError: there are no examples, or `batch_size` or `start` is out of range.
        """
        if batch_size < 1 or start < 0:
            raise InputError(f"batch_size must be 1 or more and start 0 or more. Given: {batch_size}, {start}.")
        if not len(self):
            raise InputError("There are no examples to make batches of.")
        return self._batches(batch_size, generator, start * batch_size)

    def _batches(self, batch_size: int, generator: torch.Generator | None, skip: int) -> Iterator[Examples]:
        order = torch.empty(0, dtype=torch.int64)
        device = None if generator is None else generator.device
        while True:
            while len(order) < skip + batch_size:
                kept = order[skip:]
                skip -= len(order) - len(kept)
                order = torch.cat([kept, torch.randperm(len(self), generator=generator, device=device).cpu()])
            yield self[order[skip : skip + batch_size].to(self.x.device)]
            skip += batch_size

    def chunks(self, size: int) -> Iterator[Examples]:
        """All examples once, in order, `size` at a time; the last chunk may be smaller.

        Raises:
            InputError: `size` is below 1.
        """
        if size < 1:
            raise InputError(f"size must be 1 or more. Given: {size}.")
        return (self[begin : begin + size] for begin in range(0, len(self), size))


class DataSource(Spec, ABC):
    """The options of a data set, and how to load it.

    The two parts are disjoint, and the same for equal options whatever was loaded before.
    """

    kind: ClassVar[str] = "dataset"

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """What one example is: shape, conditions, standard deviation, levels and bounds.

        Known without loading where it can be; otherwise this loads, each time, and the docstring of the class says so.

        Raises:
            InputError: the data are needed and cannot be read.
        """

    @abstractmethod
    def load(self, split: Split) -> Examples:
        """The examples of one part, on the CPU.

        Raises:
            InputError: there is no such part, or the data cannot be read.
        """


class Bijection(ABC):
    """An invertible map from the values of dequantised data, x, to those that a model is trained on, z; float64."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """z (B, *S) of x (B, *S)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """x (B, *S) of z (B, *S)."""

    @abstractmethod
    def log_det(self, x: Tensor) -> Tensor:
        """log |det dz/dx| at x, (B,): log p(x) = log p(z) + log_det(x)."""


class Transformed(DataSource, ABC):
    """A data set seen through a bijection.

    As a source it gives z, dequantised once. Who dequantises anew at every step, or wants a density or samples in the
    units of `source`, uses the map itself.
    """

    source: DataSource
    """The data set."""

    @abstractmethod
    def fit(self) -> Bijection:
        """The map, from the train part of the source: equal for equal options."""


def load_dataset(value: str | Mapping[str, Any] | DataSource) -> DataSource:
    """A data set from a name, a mapping with `name` and options, or the object itself. Loads no data.

    Raises:
        OptionError: an option is wrong, or `value` is none of the three.
        UnknownComponentError, AmbiguousComponentError, PluginError: the name leads to no one data set.
        SpecError: what a plugin registered under that name is no `DataSource`.
    """
    if isinstance(value, DataSource):
        return value
    if not isinstance(value, (str, Mapping)):
        raise OptionError(
            f"A data set is a name, a mapping with 'name', or an itoflow_data.DataSource. Given: {value!r} "
            f"({type(value).__name__}). Installed: {listing(available('dataset'))}."
        )
    found = resolve("dataset", value)
    if not isinstance(found, DataSource):
        raise SpecError(
            f"{type(found).__module__}.{type(found).__qualname__}, registered as a dataset for {value!r}, does not "
            "derive from itoflow_data.DataSource. Derive it, or register it by the hook of its own kind."
        )
    return found


def split_index(split: str) -> int:
    """0 for `train`, 1 for `test`.

    Raises:
        InputError: it is neither.
    """
    if split not in get_args(Split):
        raise InputError(f"No part is called {split!r}. Parts: train, test.")
    return get_args(Split).index(split)


def split_indices(n: int, test_fraction: float, seed: int, split: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which of n examples are in a part: round(n test_fraction), but at least one, of a random order are the test part.

    The order is `numpy.random.default_rng(seed).permutation(n)`, of which the test part is the end.

    Raises:
        InputError: there is no such part, or a part would be empty.
    """
    test = max(round(n * test_fraction), 1)
    if test >= n:
        raise InputError(
            f"{n} examples cannot be cut into a train part and a test part of fraction {test_fraction:g}. "
            "Add examples, or lower test_fraction."
        )
    order = np.random.default_rng(seed).permutation(n)
    return order[n - test :] if split_index(split) else order[: n - test]


def to_levels(x: Tensor, spec: DataSpec) -> Tensor:
    """The level 0 ... levels - 1 nearest to each value, int64, the shape of x; values outside go to the nearest end.

    Raises:
        InputError: the data have no levels, or x is not floating and finite.
    """
    last = _levels(spec) - 1
    if not x.is_floating_point() or not bool(torch.isfinite(x).all()):
        raise InputError(f"x must be floating and finite, in data units. Given: {x.dtype}, or NaN or infinite values.")
    scaled = (x.to(torch.float64) - spec.low) * (last / (spec.high - spec.low))
    return scaled.round().clamp(0, last).to(torch.int64)


def from_levels(levels: Tensor, spec: DataSpec) -> Tensor:
    """The values low + (high - low) k / (levels - 1) of levels k: float32, data units, the shape of `levels`.

    Raises:
        InputError: the data have no levels, or a k is no integer in 0 ... levels - 1.
    """
    last = _levels(spec) - 1
    if levels.is_floating_point() or levels.is_complex() or levels.dtype == torch.bool:
        raise InputError(f"Levels are integers. Given: {levels.dtype}. Data units become levels by to_levels.")
    if levels.numel() and not 0 <= int(levels.min()) <= int(levels.max()) <= last:
        raise InputError(f"Levels must be in 0 to {last}. Given: {int(levels.min())} to {int(levels.max())}.")
    return (spec.low + (spec.high - spec.low) * levels.to(torch.float64) / last).to(torch.float32)


def _levels(spec: DataSpec) -> int:
    if spec.levels is None:
        raise InputError("These data are continuous: their data spec has levels=None. Give a spec with levels.")
    return spec.levels
