"""Targets on which the grids and tables of `auto` were computed, and others on which they are judged.

Mixtures of Gaussians of 1 to 256 dimensions, 2 to 20 modes, mode widths 0.02 to 0.5, isotropic and anisotropic (one
with axes of a hundredth of its width, as the data of images have), equal and unequal weights and widths; all with a
variance of 1 per dimension on average, and with mean 0 or means of up to 1, as data are seldom centred. None is a
target of the comparison with other libraries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Mixture:
    """sum_k w_k N(m_k, (std_k axes)^2), scaled to a variance of 1 per dimension on average, moved to its mean.

    Arguments:
        means: (K, D).
        std: of the modes, a number or (K,).
        weights: (K,), None for equal ones.
        axes: (D,), the factor of each axis.
        mean: (D,), in standard deviations; None for 0.

    Attributes:
        end: s at which x0 is the endpoint.
        start: s at which runs start.
    """

    def __init__(
        self,
        means: Tensor,
        std: Tensor | float,
        weights: Tensor | None = None,
        axes: Tensor | None = None,
        mean: Tensor | None = None,
    ) -> None:
        count, size = means.shape
        weights = torch.ones(count) if weights is None else weights
        self.weights = (weights / weights.sum()).double()
        means = means.double() - self.weights @ means.double()
        std = torch.as_tensor(std, dtype=torch.float64).expand(count)
        axes = torch.ones(size, dtype=torch.float64) if axes is None else axes.double()
        total = (self.weights @ means.square()).sum() + self.weights @ std.square() * axes.square().sum()
        scale = (total / size).rsqrt()
        self.means = means * scale + (0 if mean is None else mean)
        self.std, self.axes = std * scale, axes
        self.end, self.start = 1e-4, "inf"
        self.equal, self.size = bool((std == std[0]).all()), size

    def denoise(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x0 | x = alpha x0 + sigma eps], (B, D)."""
        if self.equal:
            kept = alpha * (self.std[0] * self.axes) ** 2
            v, m = alpha * kept + sigma**2, alpha * self.means
            shares = ((x / v) @ m.T - (m.square() / v).sum(1) / 2 + self.weights.log()).softmax(1)
            mean = shares @ self.means
            return mean + kept / v * (x - alpha * mean)
        kept = alpha * (self.std[:, None] * self.axes) ** 2
        v = alpha * kept + sigma**2
        squares = x.square() @ (1 / v).T - 2 * alpha * (x @ (self.means / v).T)
        squares = squares + (alpha**2 * self.means.square() / v + v.log()).sum(1)
        shares = (self.weights.log() - squares / 2).softmax(1)
        return shares @ (self.means * sigma**2 / v) + x * (shares @ (kept / v))


def _random(seed: int, modes: int, size: int) -> Tensor:
    return torch.randn(modes, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(seed: int, count: int, least: int = 1, mean: float = 0.0) -> dict[str, Mixture]:
    """Mixtures at random: dimensions log-uniform in `least` to 128, 2 to 20 modes, widths log-uniform in 0.05 to 0.6.

    A third have axes that differ by 10^0.3 to 10^1.5, a third unequal weights, a quarter unequal widths. Means per
    dimension are normal, of a size uniform up to `mean`. Near copies of the compared targets are left out: 6 to 10
    modes in 2 dimensions, and 7 to 13 in 40 to 96.
    """
    generator, family = torch.Generator().manual_seed(seed), dict[str, Mixture]()
    while len(family) < count:
        u = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
        size, modes = round(least * (128 / least) ** u[0]), 2 + int(19 * u[1])
        width = 0.05 * 12 ** u[2]
        means = torch.randn(modes, size, generator=generator, dtype=torch.float64)
        spread = torch.rand(3, modes, generator=generator, dtype=torch.float64)
        at = mean * u[7] * torch.randn(size, generator=generator, dtype=torch.float64) if mean else None
        if (size == 2 and 6 <= modes <= 10) or (40 <= size <= 96 and 7 <= modes <= 13):
            continue
        family[f"{seed} {size}d-{modes} {width:.2f}"] = Mixture(
            means,
            width * (0.5 + 1.5 * spread[0]) if u[3] < 1 / 4 else width,
            1 + 3 * spread[1] if u[4] < 1 / 3 else None,
            torch.logspace(-0.6, 0.6, size) ** (0.25 + u[6]) if u[5] < 1 / 3 else None,
            at,
        )
    return family


def training() -> dict[str, Mixture]:
    """The family that was optimised on."""
    nine = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    return {
        "1d-4": Mixture(torch.tensor([[-1.5], [-0.3], [0.4], [1.6]]), 0.15, torch.tensor([1.0, 2.0, 1.0, 3.0])),
        "2d-5": Mixture(_random(11, 5, 2), torch.tensor([0.1, 0.15, 0.2, 0.12, 0.3])),
        "2d-9": Mixture(nine, 0.12),
        "3d-12": Mixture(_random(12, 12, 3), 0.15),
        "5d-4": Mixture(_random(18, 4, 5), 0.08),
        "8d-6": Mixture(_random(13, 6, 8), 0.4, axes=torch.logspace(-0.9, 0.3, 8)),
        "12d-9": Mixture(_random(19, 9, 12), 0.2, torch.arange(1.0, 10.0)),
        "16d-20": Mixture(_random(14, 20, 16), 0.25),
        "32d-5": Mixture(_random(15, 5, 32), 0.4, torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0])),
        "40d-14": Mixture(_random(24, 14, 40), 0.5),
        "48d-8": Mixture(_random(16, 8, 48), 0.3, axes=torch.logspace(-0.5, 0.4, 48)),
        "64d-3": Mixture(_random(30, 3, 64), 0.4, torch.tensor([1.0, 2.0, 2.0])),
        "72d-2": Mixture(_random(31, 2, 72), 0.2),
        "112d-4": Mixture(_random(32, 4, 112), 0.25),
        "80d-4": Mixture(_random(25, 4, 80), 0.35, axes=torch.logspace(-0.3, 0.2, 80)),
        "128d-16": Mixture(_random(17, 16, 128), 0.2),
        "256d-6": Mixture(_random(26, 6, 256), 0.15),
        "10d-5": Mixture(_random(28, 5, 10), 0.02),
        "100d-7": Mixture(_random(29, 7, 100), 0.4, axes=torch.logspace(-2, 0.3, 100)),
        **drawn(11, 45),
        **drawn(12, 30, least=24),
        **drawn(15, 110, mean=1.0),
        **drawn(16, 70, least=24, mean=1.0),
    }


def validation() -> dict[str, Mixture]:
    """The family by which it was decided what to keep; nothing was computed on it."""
    t = torch.linspace(0, 4 * math.pi, 20)
    return {
        "2d-spiral": Mixture(torch.stack([t * t.cos(), t * t.sin()], 1), 0.6),
        "4d-7": Mixture(_random(21, 7, 4), 0.12),
        "24d-12": Mixture(_random(22, 12, 24), 0.35, axes=torch.logspace(-0.4, 0.3, 24)),
        "96d-3": Mixture(_random(23, 3, 96), 0.3),
        "56d-11": Mixture(_random(27, 11, 56), 0.25),
        **drawn(501, 10),
        **drawn(502, 10),
        **drawn(777, 60),
        **drawn(778, 40, least=24),
        **drawn(779, 60, mean=1.0),
        **drawn(780, 40, least=24, mean=1.0),
    }


def fresh() -> dict[str, Mixture]:
    """Drawn by the same laws, and run once, when all was decided."""
    return {**drawn(991, 25), **drawn(992, 25, mean=1.0)}
