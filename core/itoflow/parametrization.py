"""Parametrizations: what the output of a network means.

At a time t of a Gaussian process, x = alpha x0 + sigma eps. A network's output is a second combination,

    y = a(t) x0 + b(t) eps,                                                                    (1)

and the two are solved for whatever is wanted: c x0 + d eps = m_x x + m_y y with

    m_x = (c b - d a) / D,   m_y = (d alpha - c sigma) / D,   D = alpha b - sigma a.           (2)

So a new prediction type is the pair (a, b) and nothing else.

References:
    Progressive Distillation for Fast Sampling of Diffusion Models (Salimans and Ho, 2022),
    https://arxiv.org/abs/2202.00512, appendix D, for v.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, section 5, for edm.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from itoflow.process import Kernel
from itoflow.spec import Spec

PredictionName = Literal["x0", "eps", "v", "velocity", "score", "edm"]


class Parametrization(Spec):
    """What the network's output means: y = a(t) x0 + b(t) eps.

    ========  =========================================  ==========================================
    name      (a, b)                                     source
    ========  =========================================  ==========================================
    x0        (1, 0)                                     the clean data
    eps       (0, 1)                                     the noise (Ho et al., 2020)
    v         (-sigma, alpha)                            Salimans and Ho, 2022
    velocity  (d_alpha, d_sigma)                         the probability-flow ODE, flow matching
    score     (0, -1/sigma)                              grad log p_t (Song et al., 2021)
    edm       (sigma/s, -alpha s) / sqrt(sigma^2 + alpha^2 s^2)   F of Karras et al., 2022, equation 7
    ========  =========================================  ==========================================

    with s the standard deviation of the data. The network's input is x divided by its own standard deviation
    sqrt(alpha^2 s^2 + sigma^2), which is 1 for a variance-preserving process and s = 1.
    """

    prediction: PredictionName
    """Name of the pair (a, b)."""
    data_std: Annotated[float, Gt(0)] = 1.0
    """Standard deviation s of the data, data units."""
    scale_input: bool = True
    """Divide the network's input by its standard deviation."""
    score: bool = True
    """Whether the score is known. False where the ends were coupled in training, so that E[eps | x_t] is no score. On
    an `InterpolantProcess`, whose velocity gives no score, true means a second output for it; see `NetworkField`."""

    def coefficients(self, k: Kernel) -> tuple[Tensor, Tensor]:
        """(a, b) at the times of the kernel, each of its shape."""
        zero, one, s = torch.zeros_like(k.alpha), torch.ones_like(k.alpha), self.data_std
        match self.prediction:
            case "x0":
                return one, zero
            case "eps":
                return zero, one
            case "v":
                return -k.sigma, k.alpha
            case "velocity":
                return k.d_alpha, k.d_sigma
            case "score":
                return zero, -1 / k.sigma
            case "edm":
                norm = (k.sigma.square() + (k.alpha * s).square()).sqrt()
                return k.sigma / (s * norm), -k.alpha * s / norm

    def input_scale(self, k: Kernel) -> Tensor:
        """What multiplies x before it enters the network: the kernel's shape, per data unit."""
        return self.scale_of(k.sigma.square() + (k.alpha * self.data_std).square())

    def scale_of(self, variance: Tensor) -> Tensor:
        """What multiplies x of this variance, data units, before it enters the network: the same shape."""
        return variance.rsqrt() if self.scale_input else torch.ones_like(variance)

    def determinant(self, k: Kernel) -> Tensor:
        """D of equation (2); zero where the output determines neither x0 nor eps."""
        a, b = self.coefficients(k)
        return k.alpha * b - k.sigma * a


def solve(k: Kernel, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """(m_x, m_y) of equation (2): c x0 + d eps = m_x x + m_y y."""
    determinant = k.alpha * b - k.sigma * a
    return (c * b - d * a) / determinant, (d * k.alpha - c * k.sigma) / determinant
