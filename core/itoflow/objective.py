"""Objectives: what a network learns about a process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from itoflow.backbone import DataSpec
from itoflow.field import Field
from itoflow.parametrization import Parametrization
from itoflow.process import PathProcess, ProcessSpec
from itoflow.spec import Spec


class Objective(Spec, ABC):
    """A loss whose minimiser is the field of the process.

    `requires` is the class that the process must derive from; `compose` refuses any other.
    """

    kind: ClassVar[str] = "objective"
    requires: ClassVar[type] = ProcessSpec

    @abstractmethod
    def parametrization(self, process: ProcessSpec, data: DataSpec) -> Parametrization:
        """What the network's output means under this objective."""

    @abstractmethod
    def __call__(
        self,
        field: Field,
        x0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of each example, (B,), for clean data x0 (B, *S).

        Arguments:
            field: the model's field, or any other of the same process (the kit passes exact ones).
            generator: draws the times and the noise.
        """


class PathObjective(Objective):
    """An objective on paths whose far end may be given: one that serves processes between two data sets too."""

    requires: ClassVar[type] = PathProcess

    @abstractmethod
    def __call__(
        self,
        field: Field,
        x0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        x1: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of each example, (B,), for clean data x0 (B, *S).

        Arguments:
            x1: (M, *S), draws of the far end for an `itoflow.InterpolantProcess`; None for any other process.
        """
