"""Endpoint error per network evaluation (NFE) on exact mixtures of Gaussians, ours and the peers' in one run.

For each target, path and NFE: the median over 512 points of the root mean square error over dimensions, and in brackets
the root mean square over points, against the exact solution of the probability-flow ODE from the same noise. All
evaluations count. Two paths: variance exploding, sigma from 80 to 0.002, and a line, x_t = (1 - t) x_0 + t eps.

The targets of the comparison: eight modes on a ring in 2 dimensions (std 0.1), ten random modes in 64 dimensions (std
0.3). The times and coefficients of `auto` were computed on others (optimal/families.py). Two families are reported
behind: one by which it was decided what to keep, and one that was drawn and run when all was decided.

Behind the tables `auto` over the best peer of each column; at or below 1 it is ahead. Of a family, its mixtures at 1 or
below, the geometric mean, and the worst.

Peers, where installed: azula 0.11.1, diffusers 0.42.1, flow_matching 1.0.10; the reference needs scipy.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itoflow import Sampler, create
from itoflow.testing import OracleField
from itoflow.testing.problems import Straight
from itoflow_sde.edm import EDM

sys.path.insert(0, str(Path(__file__).parent / "optimal"))
from families import Mixture, fresh, validation

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

NFE = (6, 10, 18, 32, 64)
POINTS = 512
LOW, HIGH, RHO = 0.002, 80.0, 7.0
TINY = 1e-9
Denoise = Callable[[Tensor, Any, Any], Tensor]
Row = dict[int, tuple[int, float, float]]
Own = Callable[[Denoise, Tensor, str, int, float], Iterator[tuple[str, int, Tensor]]]


class Modes:
    """Equal modes of one width: E[x0 | x = alpha x0 + sigma eps]."""

    def __init__(self, means: Tensor, width: float) -> None:
        self.means, self.width, self.size = means, width, means.shape[1]
        self.std = float((means.var(0, unbiased=False).mean() + width**2).sqrt())

    def denoise(self, x: Tensor, alpha: Any, sigma: Any) -> Tensor:
        v = (alpha * self.width) ** 2 + sigma**2
        z = x[:, None] - alpha * self.means
        shares = torch.softmax(-z.square().sum(2) / (2 * v), 1)
        return (shares[:, :, None] * (self.means + alpha * self.width**2 / v * z)).sum(1)


def targets() -> dict[str, Modes]:
    """Those of the comparison."""
    angle = torch.arange(8) * math.pi / 4
    ring = torch.stack([angle.cos(), angle.sin()], 1) * math.sqrt(2)
    return {
        "ring8, 2-D": Modes(ring, 0.1),
        "gmm10, 64-D": Modes(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)), 0.3),
    }


def reference(denoise: Denoise, x: Tensor, path: str) -> Tensor:
    """The endpoint by an adaptive method of order 8 in log(sigma / alpha), to 1e-8; from 1e5 for the line."""
    from scipy.integrate import solve_ivp

    start = HIGH if path == "exploding" else 1e5

    def slope(log_s: float, y: Any) -> Any:
        points = torch.from_numpy(y.reshape(x.shape))
        return (points - denoise(points, 1.0, math.exp(log_s))).numpy().ravel()

    span = (math.log(start), math.log(1e-4))
    solved = solve_ivp(slope, span, (x * start).numpy().ravel(), method="DOP853", rtol=1e-8, atol=1e-8)
    return denoise(torch.from_numpy(solved.y[:, -1].reshape(x.shape)), 1.0, 1e-4)


def auto(denoise: Denoise, x: Tensor, path: str, nfe: int, std: float) -> Iterator[tuple[str, int, Tensor]]:
    """`auto`, as it is."""
    yield from _run({"auto": create("sampler", "auto", steps=nfe)}, denoise, x, path, std)


def ours(denoise: Denoise, x: Tensor, path: str, nfe: int, std: float) -> Iterator[tuple[str, int, Tensor]]:
    """`auto`, and methods by name with the evaluations that fit."""
    yield from auto(denoise, x, path, nfe, std)
    methods: dict[str, Sampler] = {
        "exponential-adams 3, optimal": create("sampler", "exponential-adams", order=3, steps=nfe, grid="optimal"),
        "dpm-solver++ 2": create("sampler", "dpm-solver++", order=2, steps=nfe),
        "unipc 3": create("sampler", "unipc", order=3, steps=nfe),
        "heun": create("sampler", "heun", steps=(nfe + 1) // 2),
    }
    yield from _run(methods, denoise, x, path, std)


def _run(
    methods: dict[str, Sampler], denoise: Denoise, x: Tensor, path: str, std: float
) -> Iterator[tuple[str, int, Tensor]]:
    process = EDM(sigma_max=HIGH, t_min=LOW / HIGH) if path == "exploding" else Straight()
    start = x * HIGH if path == "exploding" else x
    for name, sampler in methods.items():
        calls = 0

        def counted(y: Tensor, alpha: Any, sigma: Any) -> Tensor:
            nonlocal calls
            calls += 1
            return denoise(y, alpha, sigma)

        end = sampler(OracleField(process, counted, std), start)
        yield f"itoflow {name}", calls, end


def azula_runs(denoise: Denoise, x: Tensor, nfe: int) -> Iterator[tuple[str, int, Tensor]]:
    """azula's samplers on the variance exploding path, uniform in sigma^(1/7), and the denoising call at the end."""
    import azula.sample as samplers
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import Schedule

    low, high = LOW ** (1 / RHO), HIGH ** (1 / RHO)

    class Exploding(Schedule):  # type: ignore[misc]
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones_like(t), (low + t * (high - low)) ** RHO

    class Exact(Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule, self.calls = Exploding(), 0

        def forward(self, y: Tensor, t: Tensor, **_: Any) -> Any:
            self.calls += 1
            return DiracPosterior(denoise(y, 1.0, float(self.schedule(t)[1])))

    multistep = [(name, k) for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB") for k in (2, 3)]
    for name, order in [("DDIM", 0), ("Heun", 0), *multistep]:
        exact = Exact()
        steps = nfe // 2 if name == "Heun" else nfe - 1
        options = {"order": order} if order else {}
        sampler = getattr(samplers, f"{name}Sampler")(exact, steps=max(steps, 1), silent=True, **options)
        end = denoise(sampler(x * HIGH), 1.0, LOW)
        yield f"azula {name}{order or ''}", exact.calls + 1, end


def diffusers_exploding(denoise: Denoise, x: Tensor, nfe: int) -> Iterator[tuple[str, int, Tensor]]:
    """diffusers' EDM schedulers."""
    import diffusers

    for name, scheduler in (
        ("edm_euler", diffusers.EDMEulerScheduler),
        ("edm_dpmpp2", diffusers.EDMDPMSolverMultistepScheduler),
        ("edm_dpmpp3", diffusers.EDMDPMSolverMultistepScheduler),
    ):
        order = {"solver_order": int(name[-1])} if name[-1].isdigit() else {}
        run = scheduler(sigma_min=LOW, sigma_max=HIGH, sigma_data=0.5, **order)
        run.set_timesteps(nfe)
        y, calls = x * HIGH, 0
        for i, t in enumerate(run.timesteps):
            sigma = float(run.sigmas[i])
            skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
            output = (denoise(y, 1.0, sigma) - skip * y) / out
            run.is_scale_input_called = True
            y, calls = run.step(output, t, y).prev_sample.double(), calls + 1
        yield f"diffusers {name}", calls, y


@contextmanager
def single_precision() -> Iterator[None]:
    """The solver of UniPC mixes dtypes where the default is double."""
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float64)


def diffusers_line(denoise: Denoise, x: Tensor, nfe: int) -> Iterator[tuple[str, int, Tensor]]:
    """diffusers' flow schedulers."""
    import diffusers

    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 1.0}
    for name, make in {
        "fm_euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
        "fm_heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(),
        "flow_dpmpp2": lambda: diffusers.DPMSolverMultistepScheduler(**flow),
        "flow_unipc2": lambda: diffusers.UniPCMultistepScheduler(**flow),
        "flow_unipc3": lambda: diffusers.UniPCMultistepScheduler(**flow, solver_order=3),
    }.items():
        run = make()
        run.set_timesteps((nfe + 1) // 2 if name == "fm_heun" else nfe)
        y, calls = x.clone(), 0
        for t in run.timesteps:
            output = _line_velocity(denoise, y, min(float(t) / 1000, 1 - TINY))
            if "unipc" in name:
                with single_precision():
                    y = run.step(output.float(), t, y.float()).prev_sample.double()
            else:
                y = run.step(output, t, y).prev_sample.double()
            calls += 1
        yield f"diffusers {name}", calls, y


def flow_matching_runs(denoise: Denoise, x: Tensor, nfe: int) -> Iterator[tuple[str, int, Tensor]]:
    """flow_matching's fixed-step solvers; its time runs from noise at 0 to data at 1."""
    from flow_matching.solver import ODESolver

    for method, stages in (("euler", 1), ("midpoint", 2), ("heun3", 3), ("rk4", 4)):
        calls = 0

        class Velocity(torch.nn.Module):
            def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
                nonlocal calls
                calls += 1
                return -_line_velocity(denoise, x, max(min(1 - float(t), 1 - TINY), TINY))

        solver = ODESolver(velocity_model=Velocity())
        end = solver.sample(x_init=x, step_size=1 / max(nfe // stages, 1), method=method)
        yield f"flow_matching {method}", calls, end


def _line_velocity(denoise: Denoise, y: Tensor, sigma: float) -> Tensor:
    """eps - x0."""
    return (y - denoise(y, 1 - sigma, sigma)) / sigma


PEERS = {
    "exploding": (azula_runs, diffusers_exploding),
    "line": (diffusers_line, flow_matching_runs),
}


def table(target: Modes | Mixture, std: float, path: str, own: Own = ours) -> dict[str, Row]:
    """Each method's (calls, median, RMSE) for each NFE."""
    x = torch.randn(POINTS, target.size, generator=torch.Generator().manual_seed(1))
    exact, rows = reference(target.denoise, x, path), dict[str, Row]()
    for nfe in NFE:
        for run in (own(target.denoise, x, path, nfe, std), *(peer(target.denoise, x, nfe) for peer in PEERS[path])):
            with suppress(ImportError):  # a peer that is not installed
                for name, calls, end in run:
                    e = (end - exact).square().mean(1).sqrt()
                    rows.setdefault(name, {})[nfe] = calls, float(e.median()), float(e.square().mean().sqrt())
    return rows


def show(title: str, rows: dict[str, Row]) -> None:
    """The rows, the least RMSE at the second NFE first."""
    print(f"\n{title}: calls: median (RMSE)")
    for name, row in sorted(rows.items(), key=lambda item: item[1][NFE[1]][2]):
        print(f"  {name:30s}", " ".join(f"{n:3d}: {m:.1e} ({r:.1e})" for n, m, r in row.values()))


def over_the_best_peer(rows: dict[str, Row]) -> Tensor:
    """`auto` over the best peer, (NFE, 2) for median and RMSE; NaN where no peer is installed."""
    peers = [row for method, row in rows.items() if not method.startswith("itoflow")]
    mine = torch.tensor([rows["itoflow auto"][n][1:] for n in NFE])
    if not peers:
        return mine * math.nan
    return mine / torch.tensor([[row[n][1:] for n in NFE] for row in peers]).nan_to_num(math.inf).amin(0)


def main() -> None:
    """Print all tables."""
    found = []
    for name, target in targets().items():
        for path in PEERS:
            rows = table(target, target.std, path)
            show(f"{name}, {path}", rows)
            cells = (f"{median:.2f} ({rmse:.2f})" for median, rmse in over_the_best_peer(rows).tolist())
            found.append(f"  {name + ', ' + path:37s}" + "".join(f"{cell:>15s}" for cell in cells))
    print("\nauto over the best peer of the column, median (RMSE), at NFE", *NFE)
    print("\n".join(found))
    for family, made in (("validation", validation()), ("fresh", fresh())):
        print(f"\n{family}, {len(made)} mixtures: at 1 or below, geometric mean, worst")
        for path in PEERS:
            ratios = torch.stack([over_the_best_peer(table(mixture, 1.0, path, auto)) for mixture in made.values()])
            for name, column in zip(("median", "RMSE"), ratios.unbind(2), strict=True):
                stats = zip((column <= 1).sum(0), column.log().mean(0).exp(), column.amax(0), strict=True)
                cells = (f"{int(ahead)} {mean:.2f} {worst:.2f}" for ahead, mean, worst in stats)
                print(f"  {path + ', ' + name:37s}" + "".join(f"{cell:>15s}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
