r"""Runge-Kutta methods on the probability-flow ODE dx/dt = velocity(x, t), from t_max down to t_min.

With h = t_next - t < 0:

    Euler, order 1:  x <- x + h v(x, t)
    Heun,  order 2:  x <- x + h/2 [v(x, t) + v(x + h v(x, t), t_next)]

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, algorithm 1.
"""

from __future__ import annotations

from itertools import pairwise

from itoflow import ProcessSpec, Row, Table, TableSampler


class Euler(TableSampler):
    """One network evaluation a step; order 1."""

    def table(self, process: ProcessSpec) -> Table:
        """One row a step."""
        times, ending = self.times(process)
        return Table((*(Row(t, b=(after - t,)) for t, after in pairwise(times)), *ending))


class Heun(TableSampler):
    """Two network evaluations a step, one in the denoising step: 2 steps - 1 in all; order 2."""

    def table(self, process: ProcessSpec) -> Table:
        """Two rows a step: the slope at t, then the slope at the Euler step's end, averaged."""
        times, ending = self.times(process)
        rows: list[Row] = []
        for t, after in pairwise(times):
            h = after - t
            rows += [Row(t), Row(after, q=(h,), b=(h / 2, h / 2))]
        return Table((*rows, *ending))
