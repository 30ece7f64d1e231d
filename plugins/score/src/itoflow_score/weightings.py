r"""Weightings of the squared error, all defined on the error of x0.

The loss of every prediction type is w(t) |x0 - x0_hat|^2, so that changing the prediction never changes the weighting.
With SNR = alpha^2 / sigma^2 and s the standard deviation of the data:

    ============== ============================================== ==========================================
    name           w                                              it is
    ============== ============================================== ==========================================
    sigma-squared  SNR                                            sigma^2 |score error|^2 = |eps error|^2
    likelihood     g^2 SNR / sigma^2                              g^2 |score error|^2
    min-snr        min(SNR, gamma)
    soft-min-snr   SNR gamma / (SNR + gamma)
    x0             1                                              |x0 error|^2
    v              SNR + 1                                        |v error|^2 where alpha^2 + sigma^2 = 1
    velocity       (d_alpha - alpha d_sigma / sigma)^2            |velocity error|^2, flow matching
    edm            (sigma^2 + alpha^2 s^2) / (sigma s)^2          |F error|^2
    ============== ============================================== ==========================================

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, section 3.3, for sigma-squared.
    Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021),
    https://arxiv.org/abs/2101.09258, equation 7, for likelihood.
    Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023), https://arxiv.org/abs/2303.09556.
    Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers (Crowson et al., 2024),
    https://arxiv.org/abs/2401.11605, for soft-min-snr, there 1 / (sigma^2 + 1/gamma) with alpha = 1.
    Progressive Distillation for Fast Sampling of Diffusion Models (Salimans and Ho, 2022),
    https://arxiv.org/abs/2202.00512, section 4, for v.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, table 1, for edm.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from itoflow import GaussianProcess, Kernel
from itoflow.process import ALPHA_ZERO

WeightingName = Literal["sigma-squared", "likelihood", "min-snr", "soft-min-snr", "x0", "v", "velocity", "edm"]


def x0_weight(
    name: WeightingName, process: GaussianProcess, t: Tensor, k: Kernel, *, gamma: float, data_std: float
) -> Tensor:
    """w(t): the shape of t, float64; finite wherever sigma > 0, at alpha = 0 too.

    Arguments:
        k: the kernel at t.
        gamma: of min-snr and soft-min-snr.
        data_std: s, of edm.
    """
    variance, signal = k.sigma.square(), k.alpha.square()
    snr = signal / variance
    match name:
        case "sigma-squared":
            return snr
        case "likelihood":
            # g is infinite where alpha = 0, and g^2 alpha^2 vanishes there
            g = torch.where(k.alpha > ALPHA_ZERO, process.diffusion(t), 0.0)
            return g.square() * snr / variance
        case "min-snr":
            return snr.clamp(max=gamma)
        case "soft-min-snr":
            return snr * gamma / (snr + gamma)
        case "x0":
            return torch.ones_like(snr)
        case "v":
            return snr + 1
        case "velocity":
            return (k.d_alpha - k.alpha * k.d_sigma / k.sigma).square()
        case "edm":
            return (variance + signal * data_std**2) / (variance * data_std**2)
