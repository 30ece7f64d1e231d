"""What training says while it runs: metrics.jsonl and the progress bar."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor
from tqdm import tqdm

from itoflow import NumericalError
from itoflow_train.recipe import TrainingOptions
from itoflow_train.run import Run
from itoflow_train.state import Own


class Log:
    """The losses of one process, the mean of which the main one writes every so many steps, and the time they took.

    Arguments:
        own: what `state` gave where the run goes on from; empty at its start.
        run: gets the lines; None in other processes, which show no bar either.

    Attributes:
        step: the last one.
        mean: of the losses last logged.
    """

    def __init__(self, options: TrainingOptions, own: Own, run: Run | None, quiet: bool) -> None:
        self._options, self._run = options, run
        self.step: int = own.get("step", 0)
        self.mean = math.nan
        self._losses = list[Tensor](own.get("losses", ()))
        self._logged, self._last = self.step, time.perf_counter()
        self._start: float = self._last - own.get("seconds", 0.0)
        disable = True if quiet or run is None else None  # None: where standard error is no terminal
        self.bar = tqdm(total=options.steps, initial=self.step, unit="step", disable=disable, leave=False)

    def add(self, loss: Tensor, rate: float) -> None:
        """One more step.

        Raises:
            NumericalError: the mean of the losses since the last line is not finite.
        """
        self._losses.append(loss)
        self.step += 1
        self.bar.update()
        if self.step % self._options.log_every == 0 or self.step == self._options.steps:
            self._write(rate)

    def _write(self, rate: float) -> None:
        self.mean = float(torch.stack(self._losses).mean())
        if not math.isfinite(self.mean):
            raise NumericalError(
                f"The loss became {self.mean} between steps {self.step - len(self._losses) + 1} and {self.step}. Lower "
                f"training.learning_rate (now {self._options.learning_rate:g}), or clip the gradient more."
            )
        now = time.perf_counter()
        speed = (self.step - self._logged) * self._options.batch_size / (now - self._last)
        self.bar.set_postfix(loss=f"{self.mean:.4g}", refresh=False)
        if self._run is not None:
            figures = {"learning_rate": rate, "seconds": now - self._start, "examples_per_second": speed}
            self._run.log(step=self.step, loss=self.mean, **figures)
        self._last, self._logged, self._losses = now, self.step, []

    def seconds(self) -> float:
        """Of the whole run until now, interruptions apart."""
        return time.perf_counter() - self._start

    def state(self) -> Own:
        """What a run goes on from."""
        losses = torch.stack(self._losses) if self._losses else torch.empty(0)
        return {"step": self.step, "seconds": self.seconds(), "losses": losses}
