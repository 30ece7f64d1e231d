r"""EDM's training: network F behind the preconditioning, its loss weight, and log-normal noise levels.

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise),   loss = lambda(sigma) |D - x0|^2 / D,
    lambda = (sigma^2 + s^2) / (sigma s)^2,   log sigma ~ N(P_mean, P_std^2),

with sigma read as sigma/alpha on processes that scale the data. The preconditioning is the prediction `edm` of
`itoflow.Parametrization`, and lambda makes the loss |F error|^2: both are cases of denoising score matching.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, table 1 and section 5.
"""

from __future__ import annotations

from typing import Literal

from itoflow_score.denoising import DenoisingScoreMatching
from itoflow_score.times import TimesName
from itoflow_score.weightings import WeightingName


class EDMObjective(DenoisingScoreMatching):
    """Denoising score matching with EDM's prediction, weighting and times; s is the data spec's std."""

    prediction: Literal["edm"] = "edm"
    """F of the preconditioning."""
    weighting: WeightingName = "edm"
    """lambda(sigma)."""
    times: TimesName = "log-normal"
    """log sigma ~ N(log_sigma_mean, log_sigma_std^2): P_mean and P_std of the paper."""
