"""What a computation holds at once, by counting the storages that are alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Peak(TorchDispatchMode):
    """Inside, counts what operations return that has at least as many elements as a tensor, by storage.

    Arguments:
        like: the tensor.

    Attributes:
        peak: the most that was alive at once, as a multiple of the tensor's bytes.
        made: how many storages were made.

    Example:
        with Peak(x) as run:
            sampler(field, x)
        assert run.peak <= 6
    """

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._size, self._bytes = like.numel(), like.numel() * like.element_size()
        self.peak, self.made = 0.0, 0
        self._alive: dict[int, float] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The operation, and a look at what it returns."""
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and value.numel() >= self._size:
                self._see(value.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self.made += 1
        self._alive[key] = storage.nbytes() / self._bytes
        weakref.finalize(storage, self._alive.pop, key, None)
        self.peak = max(self.peak, sum(self._alive.values()))


def held(run: Callable[[torch.Tensor], Any], x: torch.Tensor) -> float:
    """The most that a run from x holds at once, as a multiple of x's bytes, beside what a first run makes and keeps."""
    run(x)
    second = Peak(x)
    with second:
        run(x)
    return second.peak


class Scaled(nn.Module):
    """A network that holds nothing but its output: a multiple of x, (B, *S)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """0.7 x."""
        return x * self.weight
