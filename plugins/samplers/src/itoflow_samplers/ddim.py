r"""Ancestral sampling and DDIM: the posterior of a Gaussian process, with x0 replaced by its estimate.

From t to s < t, for any variance tau^2 <= sigma_s^2 of fresh noise,

    x_s = alpha_s x0 + sqrt(sigma_s^2 - tau^2) eps + tau z,     eps = (x_t - alpha_t x0) / sigma_t          (1)

keeps the marginals when x0 and eps are exact. The variance of the true posterior q(x_s | x_t, x0) is

    tau^2 = sigma_s^2 (1 - SNR_t / SNR_s),   SNR = alpha^2 / sigma^2.                                       (2)

DDIM takes eta times that tau: eta = 0 is deterministic (an exponential integrator of the probability-flow ODE), eta = 1
is ancestral sampling.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239, section 3.2.
    Denoising Diffusion Implicit Models (Song et al., 2020), https://arxiv.org/abs/2010.02502, equations 12 and 16.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Literal

from annotated_types import Ge, Le

from itoflow import ProcessSpec, Row, Table
from itoflow_samplers.stochastic import StochasticSampler
from itoflow_samplers.transitions import Transition, transitions


class DDIM(StochasticSampler):
    """Equation (1) with tau = eta times the posterior's; one network evaluation a step."""

    eta: Annotated[float, Ge(0), Le(1)] = 0.0
    """0: deterministic; 1: the posterior's variance."""

    def table(self, process: ProcessSpec) -> Table:
        """One row a step."""
        times, ending = self.times(process)
        steps = transitions(process, times)
        rows = [posterior_row(step, self.eta * step.posterior_std) for step in steps]
        if self.eta:
            rows = [replace(row, clock=self.clock(*step.snr)) for row, step in zip(rows, steps, strict=True)]
        return Table((*rows, *ending))


class Ancestral(StochasticSampler):
    """Ancestral sampling: the posterior's mean, and a choice of two variances; one network evaluation a step."""

    variance: Literal["posterior", "forward"] = "posterior"
    """Of the fresh noise: equation (2), exact for data at a point, or the forward transition's, exact for N(0, I)."""

    def table(self, process: ProcessSpec) -> Table:
        """One row a step."""
        times, ending = self.times(process)
        steps = transitions(process, times)
        rows = [replace(posterior_row(s, s.posterior_std), clock=self.clock(*s.snr)) for s in steps]
        if self.variance == "forward":
            rows = [replace(row, c=step.forward_std) for row, step in zip(rows, steps, strict=True)]
        return Table((*rows, *ending))


def posterior_row(step: Transition, tau: float) -> Row:
    """Equation (1) as a row: eps is eliminated, so that it holds at alpha_t = 0 too."""
    kept = math.sqrt(max(step.sigma_s**2 - tau**2, 0.0)) / step.sigma_t
    return Row(step.t, out="x0", a=kept, b=(step.alpha_s - kept * step.alpha_t,), c=tau)
