"""Backbones: the networks, built for the data that they will see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, MinLen
from pydantic import FiniteFloat, model_validator
from torch import Tensor, nn

from itoflow.errors import InputError
from itoflow.spec import Spec
from itoflow.transforms import holds

STD_LIMIT = 1e12
"""The largest standard deviation of data, and the inverse of the smallest."""


class DataSpec(Spec):
    """What one example is: its shape, its conditions, and the scale of its values.

    Values are in data units. A discrete value k of 0 ... levels - 1 stands at low + (high - low) k / (levels - 1).
    """

    shape: Annotated[tuple[Annotated[int, Gt(0)], ...], MinLen(1)]
    """Shape S of one example, e.g. (C, H, W), or (D,) for vectors."""
    classes: Annotated[int, Ge(2)] | None = None
    """Number of classes; each example then has a condition `class`, int64 in [0, classes)."""
    vector: Annotated[int, Gt(0)] | None = None
    """Size of a conditioning vector; each example then has a condition `vector`, (vector,) floats."""
    std: Annotated[FiniteFloat, Gt(0)] = 1.0
    """Standard deviation of the values about their mean, data units; scales the network's input, EDM's preconditioning
    and the default sampler. The mean is best near 0: nothing subtracts it, and a prior is centred."""
    levels: Annotated[int, Ge(2)] | None = None
    """Number of discrete values, or None for continuous data."""
    low: FiniteFloat = -1.0
    """Smallest value, data units."""
    high: FiniteFloat = 1.0
    """Largest value, data units."""

    @model_validator(mode="after")
    def _ordered(self) -> DataSpec:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if not 1 / STD_LIMIT <= self.std <= STD_LIMIT:
            raise ValueError(
                f"std = {self.std:g} is not between {1 / STD_LIMIT:g} and {STD_LIMIT:g}, beyond which squares of the "
                "values leave float32. Give the data in another unit, best one in which std is near 1"
            )
        return self

    def check(self, x: Tensor, what: str = "x") -> None:
        """Refuse a batch that is not (B, *S), floating and finite.

        Raises:
            InputError: says what is wrong and what would fit.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"{what} must be a torch.Tensor of shape (B, {self._sizes()}). Given: {type(x).__name__}.")
        if x.ndim != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape:
            raise InputError(f"{what} must have shape (B, {self._sizes()}). Given: {tuple(x.shape)}.")
        if not x.is_floating_point():
            scaled = f", scaled to [{self.low:g}, {self.high:g}]" if self.levels else ""
            advice = "x.float() / 127.5 - 1 for bytes" if self.levels else "x.float()"
            raise InputError(f"{what} must be floating{scaled}. Given: {x.dtype}. Convert it, e.g. by {advice}.")
        if not holds(torch.isfinite(x)):
            raise InputError(f"{what} has {int((~torch.isfinite(x)).sum())} values that are NaN or infinite.")

    def conditions(self, cond: Mapping[str, Any] | None, n: int, device: torch.device) -> dict[str, Tensor]:
        """The conditions of n examples as tensors on `device`, checked; one value is repeated n times.

        Raises:
            InputError: a condition is missing, unexpected, out of range or of the wrong shape.
        """
        if cond is not None and not isinstance(cond, Mapping):
            raise InputError(f"cond is a mapping of names to values. Given: {type(cond).__name__}.")
        given = dict(cond or {})
        wanted = {name for name, size in (("class", self.classes), ("vector", self.vector)) if size is not None}
        if set(given) != wanted:
            missing, extra = sorted(wanted - set(given)), sorted(map(str, set(given) - wanted))
            raise InputError(
                f"The model's conditions are {sorted(wanted) or 'none'}; missing: {missing or 'none'}, unexpected: "
                f"{extra or 'none'}. Pass cond={{{', '.join(f'{w!r}: ...' for w in sorted(wanted))}}}."
            )
        checked = {}
        if self.classes is not None:
            label = _tensor("class", given["class"], device)
            if (
                label.is_floating_point()
                or label.is_complex()
                or label.dtype == torch.bool
                or label.ndim > 1
                or label.shape not in ((), (n,))
            ):
                raise InputError(
                    f"cond['class'] must be one integer or {n} of them. Given: {label.dtype}, {tuple(label.shape)}."
                )
            if not holds((label >= 0) & (label < self.classes)):
                raise InputError(
                    f"cond['class'] must be in [0, {self.classes}). Given: {int(label.min())} to {int(label.max())}."
                )
            checked["class"] = label.to(torch.int64).expand(n)
        if self.vector is not None:
            vector = _tensor("vector", given["vector"], device)
            if vector.shape not in ((self.vector,), (n, self.vector)) or not vector.is_floating_point():
                raise InputError(
                    f"cond['vector'] must be floating, of shape ({self.vector},) or ({n}, {self.vector}). "
                    f"Given: {vector.dtype} of shape {tuple(vector.shape)}."
                )
            if not holds(torch.isfinite(vector)):
                raise InputError("cond['vector'] has values that are NaN or infinite.")
            checked["vector"] = vector.expand(n, self.vector)
        return checked

    def _sizes(self) -> str:
        return ", ".join(str(size) for size in self.shape)


def _tensor(name: str, value: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"cond[{name!r}] must be a tensor or numbers. Given: {value!r}.") from error


class Backbone(Spec, ABC):
    """The options of a network, and how to build it.

    The module is called as net(x, t, cond) and returns (B, *S): x (B, *S) of unit variance, by `scale_input`; t (B,) in
    [0, 1], of x's dtype, or float32 where that is of half precision; cond a mapping with `class` (B,) int64 and
    `vector` (B, V) where the data spec has them.
    """

    kind: ClassVar[str] = "backbone"
    scale_input: ClassVar[bool] = True
    """Whether x is divided by its standard deviation for this network. False for one with weights from elsewhere, that
    were learnt on x as it is."""

    @abstractmethod
    def build(self, data: DataSpec) -> nn.Module:
        """A freshly initialised network for that data, by torch's default generator.

        Raises:
            IncompatibleError: this backbone cannot serve data of that shape or those conditions.
        """
