"""Small networks among the targets of `optimise.py`: what is learnt varies along the run as no exact law does.

A network sees the time through sines and cosines, so its error wavers with t, or with log s where that is the label;
evaluations must be spent on all of the run, not only where the law turns. Each is a residual MLP, trained for some
seconds on draws from a mixture of the training family.
"""

from __future__ import annotations

import torch
from families import Mixture, training
from torch import Tensor

import itoflow
from itoflow import DataSpec, GenerativeModel

LAST = 0.004
"""s at the end of the runs of `edm`."""
RECIPES = (
    ("16d-20", {"name": "edm", "t_min": LAST / 80}, "edm"),
    ("3d-12", {"name": "edm", "t_min": LAST / 80}, "edm"),
    ("100d-7", {"name": "vp", "t_min": 1.2e-4}, {"name": "dsm", "prediction": "v"}),
    ("10d-5", {"name": "linear"}, "flow-matching"),
)
"""Data, process, objective. Networks that predict noise are left out: `auto` treats them apart."""


class Network:
    """E[x0 | x] as a network has it, with the interface of `Mixture`."""

    def __init__(self, model: GenerativeModel) -> None:
        self.model, self.size = model.double().eval(), model.data.shape[0]
        data, prior = model.process.ends()
        self.end = max(float(data.sigma / data.alpha), 1e-4)
        self.start = "inf" if float(prior.alpha) < 1e-9 else "80"

    def denoise(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x0 | x = alpha x0 + sigma eps], (B, D)."""
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64) for v in (alpha, sigma))
        process = self.model.process
        t = process.log_snr_inverse(2 * (alpha.clamp(min=1e-17) / sigma).log().reshape(1)).squeeze()
        k = process.kernel(t)
        ratio = torch.where(alpha > sigma, k.alpha / alpha, k.sigma / sigma)  # x there over x here
        return self.model.field(ratio * x, t).x0


def drawn(target: Mixture, count: int, generator: torch.Generator) -> Tensor:
    """Samples, (count, D)."""
    which = torch.multinomial(target.weights, count, replacement=True, generator=generator)
    noise = torch.randn(count, target.size, generator=generator, dtype=torch.float64)
    return target.means[which] + target.std[which, None] * target.axes * noise


def trained(steps: int = 1500) -> dict[str, Network]:
    """All of them."""
    family, found = training(), {}
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        for i, (name, process, objective) in enumerate(RECIPES):
            torch.manual_seed(i)
            model = itoflow.compose(
                process=process,
                objective=objective,
                backbone={"name": "mlp", "width": 128},
                data=DataSpec(shape=(family[name].size,), std=1.0),
            )
            optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
            generator = torch.Generator().manual_seed(300 + i)
            for step in range(steps):
                optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, step / 100) * (1 - step / steps)
                optimiser.zero_grad()
                model.loss(drawn(family[name], 256, generator).float()).mean().backward()
                optimiser.step()
            found[f"network {name}"] = Network(model)
    finally:
        torch.set_default_dtype(default)
    for network in found.values():
        network.model.requires_grad_(False)
    return found
