r"""The Brownian bridge between two laws: the path of Schroedinger bridges.

    x_t = (1 - t) x_0 + t x_1 + s sqrt(t (1 - t)) z,   z ~ N(0, I),   s = sigma
    u(x_t | x_0, x_1) = x_1 - x_0 + s (1 - 2t) / (2 sqrt(t (1 - t))) z

Here x_0 is at t = 0 and x_1 at t = 1; as taught, with tau = 1 - t, the ends change their names and u its sign.

Conditioned on its ends this is Brownian motion of diffusion s. Where the ends are coupled by the entropic plan with
epsilon = 2 s^2 (`sinkhorn`), the SDEs of strength g = s are those of the Schroedinger bridge; with any coupling they
share the marginals p_t. u is infinite at both ends of time, from which t_min and t_max keep away.

References:
    Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport (Tong et al., 2024),
    https://arxiv.org/abs/2302.00482, section 3.2.4, equation 17 for the bridge.
    Simulation-Free Schroedinger Bridges via Score and Flow Matching (Tong et al., 2024),
    https://arxiv.org/abs/2307.03672, equation 8.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from itoflow import InterpolantProcess


class BrownianBridge(InterpolantProcess):
    """alpha = 1 - t, beta = t, gamma = s sqrt(t (1 - t)); SDE strength g = s."""

    sigma: Annotated[float, Gt(0)] = 1.0
    """s, the diffusion of the Brownian motion, data units per square root of a unit of t."""
    t_min: Annotated[float, Gt(0), Lt(1)] = 1e-3
    """Data end of the time interval, where noise of 0.03 s is left; at 0 the velocity is infinite."""
    t_max: Annotated[float, Gt(0), Lt(1)] = 0.999
    """Far end of the time interval, to which sampling first draws from x_1; at 1 the velocity is infinite."""

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def beta(self, t: Tensor) -> Tensor:
        """t itself."""
        return t.clone()

    def gamma(self, t: Tensor) -> Tensor:
        """s sqrt(t (1 - t))."""
        return self.sigma * (t * (1 - t)).sqrt()

    def d_alpha(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def d_beta(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def d_gamma(self, t: Tensor) -> Tensor:
        """s (1 - 2t) / (2 sqrt(t (1 - t)))."""
        return self.sigma * (1 - 2 * t) / (2 * (t * (1 - t)).sqrt())

    def diffusion(self, t: Tensor) -> Tensor:
        """s."""
        return torch.full_like(t, self.sigma)
