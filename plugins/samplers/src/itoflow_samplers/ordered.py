"""The order of a multistep method, which no run of fewer steps can have."""

from __future__ import annotations

from typing import Annotated, Self

from annotated_types import Ge, Le
from pydantic import model_validator

from itoflow import TableSampler


class OrderedSampler(TableSampler):
    """A sampler with an order; given with fewer steps, it is refused."""

    order: Annotated[int, Ge(1), Le(4)] | None = None
    """Order of the method; None is its own choice, and no more than the steps."""

    def needed_steps(self) -> int:
        """How many steps the order asks for."""
        return self.order or 1

    @model_validator(mode="after")
    def _enough_steps(self) -> Self:
        if self.steps < self.needed_steps():
            raise ValueError(f"order = {self.order} needs at least as many steps. Given: steps = {self.steps}")
        return self
