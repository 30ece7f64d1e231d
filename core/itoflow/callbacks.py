"""Callbacks of a sampling run: keep its trajectory, show its progress, or both."""

from __future__ import annotations

import sys
from typing import Self, TextIO

from torch import Tensor

from itoflow.errors import InputError
from itoflow.loop import Callback, Step, check_callback


class Trajectory:
    """Keeps states of a run, at most `keep` whatever its length, on the CPU.

    When full, every second one is dropped and from then on half as many are taken, so that what is kept is spread
    evenly over the calls; the last state is always there.

    Attributes:
        times: of the calls kept.
        states: the carried state after each of them, (B, *S), data units.

    Raises:
        InputError: keep is no whole number, or below 2.
    """

    def __init__(self, keep: int = 32) -> None:
        if type(keep) is not int or keep < 2:
            raise InputError(f"A trajectory keeps a whole number of states, at least 2. Given: keep = {keep!r}.")
        self.keep, self._every = keep, 1
        self._kept: list[tuple[float, Tensor]] = []
        self._last: tuple[float, Tensor] | None = None

    def __call__(self, step: Step) -> None:
        """After a network call; the first call of a run starts anew."""
        if step.index == 0:
            self._kept, self._every = [], 1
        self._last = (step.t, step.x.detach().to("cpu", copy=True))
        if step.index % self._every:
            return
        if len(self._kept) == self.keep - 1:
            self._kept, self._every = self._kept[::2], 2 * self._every
            if step.index % self._every:
                return
        self._kept.append(self._last)

    @property
    def _all(self) -> list[tuple[float, Tensor]]:
        last = self._last
        return self._kept if last is None or (self._kept and self._kept[-1] is last) else [*self._kept, last]

    @property
    def times(self) -> list[float]:
        """Times of the calls kept, falling."""
        return [t for t, _ in self._all]

    @property
    def states(self) -> list[Tensor]:
        """The carried state after each, (B, *S), data units, on the CPU."""
        return [x for _, x in self._all]


class Progress:
    """One line that is rewritten: network calls made, of how many, and the time of the process.

    A context, at whose end the line does, where the number of calls is not known ahead or a run fails.

    Arguments:
        stream: where to; None is standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream, self._open = stream, False

    def __call__(self, step: Step) -> None:
        """After a network call."""
        made, self._open = step.index + 1, step.index + 1 != step.calls
        total = "" if step.calls is None else f"/{step.calls} [{'#' * (20 * made // step.calls):20s}]"
        self._write(f"\rsampling {made}{total} t = {step.t:.4f}" + ("" if self._open else "\n"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._open:
            self._write("\n")
            self._open = False

    def _write(self, text: str) -> None:
        stream = self.stream or sys.stderr
        stream.write(text)
        stream.flush()


def together(*callbacks: Callback | None) -> Callback | None:
    """One callback that calls all that are given; None where none is.

    Raises:
        InputError: one of them cannot be called.
    """
    for callback in callbacks:
        check_callback(callback)
    given = [callback for callback in callbacks if callback is not None]

    def call(step: Step) -> None:
        for callback in given:
            callback(step)

    return call if given else None
