r"""EDM's stochastic sampler: add noise, then take a step of Heun's method from the higher level.

With s = sigma / alpha and y = x / alpha the probability-flow ODE of every Gaussian process is dy/ds = eps, and a step
from s to s_1 < s is

    s^ = (1 + gamma) s,  gamma = min(S_churn / N, sqrt(2) - 1) if S_min <= s <= S_max else 0,
    y^ = y + S_noise sqrt(s^^2 - s^2) z,
    y_1 = y^ + (s_1 - s^)/2 [eps(y^, s^) + eps(y^ + (s_1 - s^) eps(y^, s^), s_1)].

With many steps s_k = s(k/N) this is the probability-flow ODE with dy = s sqrt(2 S_churn) S_noise dW(k/N) beside it and
what takes that noise away again. So z may be a path's increment: here over the step's stretch of the clock 1 / s^2, as
that of the other stochastic samplers is.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, algorithm 2, table 5 for the constants.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, cast

import torch
from annotated_types import Ge

from itoflow import GaussianProcess, ProcessSpec, Row, Table
from itoflow.process import ALPHA_ZERO
from itoflow_samplers.ddim import posterior_row
from itoflow_samplers.stochastic import StochasticSampler
from itoflow_samplers.transitions import Transition, transitions


class Churn(StochasticSampler):
    """Heun with churn; two network evaluations a step, one in the last, and in a first one from alpha = 0 (DDIM)."""

    s_churn: Annotated[float, Ge(0)] = 40.0
    """S_churn; 0 is the deterministic method."""
    s_min: Annotated[float, Ge(0)] = 0.05
    """S_min, a level sigma / alpha, data units."""
    s_max: Annotated[float, Ge(0)] = 50.0
    """S_max."""
    s_noise: Annotated[float, Ge(0)] = 1.003
    """S_noise, the standard deviation of the noise that is added."""

    def table(self, process: ProcessSpec) -> Table:
        """Two rows a step."""
        times, ending = self.times(process)
        rows = list[Row]()
        for plain in transitions(process, times):
            if plain.alpha_t <= ALPHA_ZERO:
                rows.append(posterior_row(plain, 0.0))
                continue
            up = self._risen(process, plain.t)
            m, std = self._noise(up)
            step = transitions(process, (up.t, plain.s))[0]
            kept = step.alpha_s / step.alpha_t
            h = step.sigma_s - kept * step.sigma_t  # alpha_1 (s_1 - s^)
            clock = self.clock(*plain.snr) if std else None
            rows.append(Row(up.t, out="eps", p=m, r=std, a=m, c=std, clock=clock))
            rows.append(Row(plain.s, out="eps", p=kept, q=(h,), a=kept, b=(h / 2, h / 2)))
        if ending:
            up = self._risen(process, times[-1])
            m, std = self._noise(up)
            snr = up.snr[1]
            clock = self.clock(snr, 2 * snr) if std else None  # behind what the steps take
            ending = (replace(ending[0], t=up.t, p=m, r=std, clock=clock),)
        return Table((*rows, *ending))

    def _risen(self, process: ProcessSpec, t: float) -> Transition:
        """From the level s^, at most that of t_max, down to t; both are t without churn."""
        here = transitions(process, (t, t))[0]
        level = here.sigma_t / here.alpha_t if here.alpha_t > ALPHA_ZERO else math.inf
        gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1) if self.s_min <= level <= self.s_max else 0.0
        if not gamma:
            return here
        log_snr = torch.tensor([-2 * math.log((1 + gamma) * level)], dtype=torch.float64)
        risen = float(cast(GaussianProcess, process).log_snr_inverse(log_snr))
        return transitions(process, (max(risen, t), t))[0]

    def _noise(self, up: Transition) -> tuple[float, float]:
        """The forward transition from t up: what multiplies x, and the standard deviation of the noise."""
        return (up.m, self.s_noise * up.forward_std) if up.t > up.s else (1.0, 0.0)
