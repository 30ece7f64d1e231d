"""What stochastic samplers draw, against the exact law of a mixture, and weak error per network evaluation.

First table, the law: 1,000 steps and 100,000 samples of three weighted clusters on three paths. Mean, covariance and
the share of each cluster must lie within 3 standard errors of the exact values, plus a discretisation allowance: a
method of weak order 1 has at 1,000 steps the error by which 500 and 1,000 steps differ. The table gives the largest
deviation in standard errors, the largest one less the allowance, and the verdict.

The Langevin steps of `predictor-corrector` have a size of their own, e = 2 (snr sigma)^2 where m = 1, at which a
Gaussian of variance V is held at V + e/2, and more steps in time do not make it smaller. The bias is of order 1 in e
too, so that a second allowance is by how much the law differs with twice the e, from the same noise.

Second table, weak error per NFE, peers beside: 50,000 samples; the sliced Wasserstein-2 distance to exact draws (64
directions), times 1,000, and the relative error of the covariance in per mille. The floor is the same figure for three
other sets of exact draws: what is near it, or below, is not resolved. Two targets: eight Gaussians on a ring, one of
the five mixtures on which the defaults of `stochastic-adams` were chosen, and one that nothing was chosen on, seven
clusters of unequal widths and weights in 12 dimensions.

Peers, where installed: azula 0.11.1, diffusers 0.42.1. Arguments: `law`, `weak`, or none for both.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from itoflow import GaussianProcess, NetworkField, Parametrization, Sampler, create
from itoflow.testing.oracles import MixtureOracle
from itoflow.testing.problems import Exploding, Preserving, Straight, mixture, seeded

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)

LAW = [
    "euler-maruyama",
    "reverse-diffusion",
    "ancestral",
    "sde-dpm-solver++",
    "sa-solver",
    "stochastic-adams",
    "churn",
    "ddim",
    "predictor-corrector",
]
WEAK: list[tuple[str, dict[str, Any]]] = [
    ("euler-maruyama", {}),
    ("ancestral", {}),
    ("sde-dpm-solver++", {}),
    ("sa-solver", {}),
    ("stochastic-adams", {}),
    ("stochastic-adams", {"order": 2, "corrector": 2}),
    ("stochastic-adams", {"strength": 0.5}),
    ("sa-solver", {"variable": "log-snr"}),
    ("churn", {"s_churn": 10.0, "s_noise": 1.0}),
]
NFES = (6, 10, 20, 40)


class Denoiser(nn.Module):
    """E[x0 | x_t] of isotropic clusters as a network that is told t, so that runs cost as little as they can.

    Arguments:
        means, weights, stds: of the clusters, (K, D), (K,) and (K,).
    """

    def __init__(self, process: GaussianProcess, means: Tensor, weights: Tensor, stds: Tensor) -> None:
        super().__init__()
        self.process, self.means, self.log_weights, self.variances = process, means, weights.log(), stds.square()

    def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        """(B, D) for x (B, D) and t (B,), all the same."""
        now = t[0].to(torch.float64)
        return self.at(x, float(self.process.alpha(now)), float(self.process.sigma(now)))

    def at(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | x] for x = alpha x0 + sigma eps."""
        v, centres = alpha**2 * self.variances + sigma**2, alpha * self.means
        squares = x.square().sum(1, keepdim=True) - 2 * x @ centres.T + centres.square().sum(1)
        shares = (self.log_weights - x.shape[1] / 2 * v.log() - squares / (2 * v)).softmax(1)
        return (shares * (sigma**2 / v)) @ self.means + (shares @ (alpha * self.variances / v))[:, None] * x


def field_of(oracle: MixtureOracle, stds: Tensor) -> NetworkField:
    """The oracle's field by its `Denoiser`; checked against the oracle."""
    process = oracle.process
    net = Denoiser(process, oracle.means, oracle.weights, stds)
    field = NetworkField(net, process, Parametrization(prediction="x0", scale_input=False))
    x, t = oracle.sample(64, 0.5, generator=seeded(0)), torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(field(x, t).x0, oracle(x, t).x0)
    return field


def statistics(x: Tensor, means: Tensor) -> Tensor:
    """Mean, covariance and cluster shares as one vector."""
    shares = torch.bincount(torch.cdist(x, means).argmin(1), minlength=len(means)) / len(x)
    return torch.cat([x.mean(0), torch.cov(x.T)[*torch.triu_indices(2, 2)], shares])


def law(samples: int = 100_000) -> None:
    """The first table."""
    print(f"law at 1,000 steps, {samples} samples: largest deviation in standard errors, and less the allowance")
    for process in (Preserving(), Exploding(), Straight()):
        oracle = mixture(process)
        field = field_of(oracle, torch.full((3,), 0.3, dtype=torch.float64))
        exact, errors = reference(oracle)
        errors = errors / math.sqrt(samples)
        x = oracle.sample(samples, process.t_max, generator=seeded(1))
        floor = ((statistics(oracle.sample(samples, generator=seeded(2)), oracle.means) - exact) / errors).abs().max()
        print(f"\n{type(process).__name__}: floor (exact draws) {float(floor):.1f}")
        for name in LAW:
            start = time.process_time()
            options = {"eta": 0.5} if name == "ddim" else {"s_noise": 1.0} if name == "churn" else {}
            sampler = create("sampler", name).replace(**options)
            half, full = (drawn(sampler, n, field, x, oracle) for n in (500, 1000))
            allowance = (half - full).abs()
            if name == "predictor-corrector":
                doubled = sampler.replace(snr=math.sqrt(2) * dict(sampler)["snr"])
                allowance += (drawn(doubled, 1000, field, x, oracle) - full).abs()
            deviation = (full - exact).abs() / errors
            beyond = ((full - exact).abs() - allowance).clamp(min=0) / errors
            verdict = "held" if float(beyond.max()) <= 3 else "NOT HELD"
            print(
                f"  {label(sampler, options):36s} {float(deviation.max()):6.1f} {float(beyond.max()):6.1f}  {verdict}"
                f"  ({time.process_time() - start:.0f} s)"
            )


def drawn(sampler: Sampler, steps: int, field: NetworkField, x: Tensor, oracle: MixtureOracle) -> Tensor:
    """The statistics after so many steps; as many steps see the same noise."""
    return statistics(sampler.with_steps(steps)(field, x, generator=seeded(3 + steps)), oracle.means)


def reference(oracle: MixtureOracle) -> tuple[Tensor, Tensor]:
    """The exact statistics, and the standard deviation of each times the square root of the number of samples.

    Mean and covariance in closed form; the shares, and all standard deviations, from 4 million exact draws.
    """
    many = torch.cat([oracle.sample(500_000, generator=seeded(50 + i)) for i in range(8)])
    mean, covariance = oracle.moments()
    exact = statistics(many, oracle.means)
    exact[:5] = torch.cat([mean, covariance[*torch.triu_indices(2, 2)]])
    centred, (i, j) = many - mean, torch.triu_indices(2, 2)
    products = centred[:, i] * centred[:, j]
    shares = exact[5:]
    return exact, torch.cat([centred.std(0), products.std(0), (shares * (1 - shares)).sqrt()])


def label(sampler: Sampler, options: dict[str, Any]) -> str:
    """Its class and the options that differ from the defaults."""
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{type(sampler).__name__}({given})"


class EDM(GaussianProcess):
    """sigma = 80 t from 0.002, on the Karras grid."""

    grid = "karras"
    t_min: float = 0.002 / 80

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """80 t."""
        return 80 * t


def ring() -> tuple[Tensor, Tensor, Tensor]:
    """Means, weights and widths of eight equal modes on a ring."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = torch.stack([angles.cos(), angles.sin()], 1) * math.sqrt(2)
    return means, torch.full((8,), 1 / 8, dtype=torch.float64), torch.full((8,), 0.1, dtype=torch.float64)


def held_out() -> tuple[Tensor, Tensor, Tensor]:
    """The same of seven unequal clusters in 12 dimensions."""
    means = torch.randn(7, 12, dtype=torch.float64, generator=seeded(31))
    return means, torch.arange(1, 8).double() / 28, torch.linspace(0.1, 0.5, 7, dtype=torch.float64)


def weak(samples: int = 50_000) -> None:
    """The second table."""
    for title, (means, weights, stds) in {"ring of 8": ring(), "held out, 12-D": held_out()}.items():
        for process in (EDM(), Straight()):
            weak_on(title, MixtureOracle(process, means, weights, stds=stds), stds, samples)


def weak_on(title: str, oracle: MixtureOracle, stds: Tensor, samples: int) -> None:
    """One block of it."""
    process = oracle.process
    field, net = field_of(oracle, stds), Denoiser(process, oracle.means, oracle.weights, stds)
    target = oracle.sample(samples, generator=seeded(1))
    unit = torch.randn(target.shape, dtype=torch.float64, generator=seeded(3))
    x = unit * process.prior_std()
    print(f"\n{title} on {type(process).__name__}, NFE: sliced W2 x 1000 / covariance, per mille")
    for i in range(3):
        exact = oracle.sample(samples, generator=seeded(20 + i))
        print(f"  {f'floor {i + 1} (exact draws)':52s}     {measured(exact, target, oracle)}")
    runs: list[tuple[str, Callable[[int], Tensor]]] = []
    for name, options in WEAK:
        sampler = create("sampler", name).replace(**options)
        steps = (lambda n: n // 2) if name == "churn" else (lambda n: n)
        runs.append(
            (
                "itoflow " + label(sampler, options),
                lambda n, s=sampler, f=steps, w=field, y=x: s.replace(steps=f(n))(w, y, generator=seeded(4)),
            )
        )
    runs += [*azula_runs(net, unit, process), *diffusers_runs(net, unit, process)]
    for name, run in runs:
        row = []
        for nfe in NFES:
            torch.manual_seed(5)
            row.append(f"{nfe:3d}: {measured(run(nfe), target, oracle)}")
        print(f"  {name:52s} {'  '.join(row)}", flush=True)


def measured(x: Tensor, target: Tensor, oracle: MixtureOracle) -> str:
    """Sliced W2 to exact draws x 1000 / relative error of the covariance x 1000."""
    if not bool(torch.isfinite(x).all()):
        return "not finite"
    directions = torch.randn(64, x.shape[1], dtype=torch.float64, generator=seeded(6))
    directions = (directions / directions.norm(dim=1, keepdim=True)).T
    ours, theirs = (x @ directions).sort(0).values, (target @ directions).sort(0).values
    distance = (ours - theirs).square().mean().sqrt()
    covariance = oracle.moments()[1]
    relative = (torch.cov(x.T) - covariance).norm() / covariance.norm()
    return f"{1000 * float(distance):6.1f} / {1000 * float(relative):5.1f}"


def azula_runs(net: Denoiser, unit: Tensor, process: GaussianProcess) -> Iterator[tuple[str, Callable[[int], Tensor]]]:
    """azula's stochastic samplers on the same path; the last call denoises, and is counted."""
    try:
        import azula.sample
        from azula.denoise import Denoiser as Base
        from azula.denoise import DiracPosterior
        from azula.noise import Schedule
    except ImportError:
        print("  azula is not installed")
        return
    rho, low, high = 7.0, 0.002, 80.0

    class Path(Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            if isinstance(process, EDM):
                return torch.ones_like(t), (low ** (1 / rho) + t * (high ** (1 / rho) - low ** (1 / rho))) ** rho
            return 1 - t, t

    class Wrapped(Base):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Path()

        def forward(self, x: Tensor, t: Tensor, **_: object) -> object:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(net.at(x, float(alpha), float(sigma)))

    straight = isinstance(process, Straight)
    ends = {"start": 1 - 1e-6, "stop": 1e-3} if straight else {}
    for name, options in (("DDPM", {}), ("Ito", {}), ("DDIM", {"eta": 1.0}), ("PC", {})):

        def run(nfe: int, name: str = name, options: dict[str, Any] = options) -> Tensor:
            per = 2 if name == "PC" else 1
            kind = getattr(azula.sample, f"{name}Sampler")
            sampler = kind(
                Wrapped(), steps=max((nfe - 1) // per, 1), silent=True, dtype=torch.float64, **options, **ends
            )
            y = sampler(unit * process.prior_std())
            return net.at(y, 1 - 1e-3 if straight else 1.0, 1e-3 if straight else low)

        yield f"azula {name} {options or ''}", run


def diffusers_runs(
    net: Denoiser, unit: Tensor, process: GaussianProcess
) -> Iterator[tuple[str, Callable[[int], Tensor]]]:
    """diffusers' stochastic schedulers on the same path."""
    try:
        import diffusers
    except ImportError:
        print("  diffusers is not installed")
        return
    if isinstance(process, EDM):

        def edm(nfe: int) -> Tensor:
            scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_data=0.5, algorithm_type="sde-dpmsolver++")
            scheduler.set_timesteps(nfe)
            y = unit * 80
            for i, t in enumerate(scheduler.timesteps):
                sigma = float(scheduler.sigmas[i])
                skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
                scheduler.is_scale_input_called = True
                y = scheduler.step((net.at(y, 1.0, sigma) - skip * y) / out, t, y).prev_sample.double()
            return y

        yield "diffusers EDM sde-dpm-solver++ 2", edm
        return
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 1.0}
    kinds: dict[str, Callable[[], Any]] = {
        "flow sde-dpm-solver++ 2": lambda: diffusers.DPMSolverMultistepScheduler(
            algorithm_type="sde-dpmsolver++", **flow
        ),
        "flow SA-Solver 2, 2": lambda: diffusers.SASolverScheduler(**flow),
        "flow Euler, stochastic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    }
    for name, make in kinds.items():

        def run(nfe: int, make: Callable[[], Any] = make) -> Tensor:
            scheduler = make()
            scheduler.set_timesteps(nfe)
            y = unit.float()
            for i, t in enumerate(scheduler.timesteps):
                sigma = min(float(scheduler.sigmas[i]), 1 - 1e-6)
                v = (y.double() - net.at(y.double(), 1 - sigma, sigma)) / sigma
                y = scheduler.step(v.float(), t, y).prev_sample.float()
            return y.double()

        yield f"diffusers {name}", run


if __name__ == "__main__":
    asked = sys.argv[1:] or ["law", "weak"]
    if "law" in asked:
        law()
    if "weak" in asked:
        weak()
