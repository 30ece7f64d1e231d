r"""8 Gaussians to two moons: what couplings do to one Euler step, to adaptive integration, and to conditions.

The setting of C2OT (https://arxiv.org/abs/2503.10636, table 1): torchcfm's two samplers, squared 2-Wasserstein distance
by exact assignment between n = 2,000 generated and n fresh points, the condition being which moon. The floor is the
same distance between two fresh sets. Independent coupling, optimal transport, and transport within conditions; where
torchcfm is installed, its matchers train the same network from the same weights, in as many steps of as many pairs.

    python tests/benchmarks/couplings.py                          all runs, about 35 minutes on one core
    python tests/benchmarks/couplings.py --runs ot --seeds 0      one of them
    python tests/benchmarks/couplings.py --results FILE           keep results there, and skip those it has
    python tests/benchmarks/couplings.py --costs                  only what a batch costs, in a minute

After the table of distances comes what each coupling costs: CPU time of a batch, the median and the least of many, one
thread; and the mean squared distance of its pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import itoflow
from itoflow_flow import transport_cost

N, BATCH, EVALUATIONS = 2000, 256, 3
RUNS = {  # name: coupling, conditional
    "independent": ("independent", False),
    "ot": ("optimal-transport", False),
    "torchcfm-independent": ("independent", False),
    "torchcfm-ot": ("optimal-transport", False),
    "cond-independent": ("independent", True),
    "cond-ot": ("optimal-transport", True),
    "cond-c2ot": ("conditional-optimal-transport", True),
}


def eight_gaussians(n: int, g: torch.Generator) -> Tensor:
    """torchcfm's: radius 5; its "variance 0.1" is the covariance sqrt(0.1) I, a standard deviation of 0.56."""
    angle = math.pi / 4 * torch.randint(8, (n,), generator=g)
    return 5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1**0.25 * torch.randn(n, 2, generator=g)


def two_moons(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """torchcfm's, from torchdyn: even angles, a uniform shift in [0, 0.2) of both coordinates, then 3 x - 1."""
    outer = n // 2
    a, b = torch.linspace(0, math.pi, outer), torch.linspace(0, math.pi, n - outer)
    x = torch.cat([torch.stack([a.cos(), a.sin()], 1), torch.stack([1 - b.cos(), 0.5 - b.sin()], 1)])
    x = x + 0.2 * torch.rand(n, 1, generator=g)
    label, order = (torch.arange(n) >= outer).long(), torch.randperm(n, generator=g)
    return 3 * x[order] - 1, label[order]


def squared_wasserstein(x: Tensor, y: Tensor) -> float:
    """Squared 2-Wasserstein distance of two sets of equal size, by exact assignment."""
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


def composed(coupling: str, conditional: bool) -> itoflow.GenerativeModel:
    """Width 128, 3 blocks; x_t on the straight line between the two sets."""
    return itoflow.compose(
        process="interpolant",
        objective={"name": "flow-matching", "coupling": {"name": coupling}},
        backbone={"name": "mlp", "width": 128},
        data={"shape": (2,), "std": 3.0, **({"classes": 2} if conditional else {})},
        sampler="heun",
    )


def peer_loss(model: itoflow.GenerativeModel, coupling: str) -> Callable[[Tensor, Tensor], Tensor]:
    """torchcfm's matcher (base at 0, data at 1) on the network of our model, which is given x / 3 and 1 - tau."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher

    matcher = (ConditionalFlowMatcher if coupling == "independent" else ExactOptimalTransportConditionalFlowMatcher)(
        0.0
    )

    def loss(x: Tensor, x1: Tensor) -> Tensor:
        tau, xt, u = matcher.sample_location_and_conditional_flow(x1, x)
        velocity = model.field(xt, 1 - tau).velocity  # forward time: minus theirs
        return (-velocity - u).square().mean()

    return loss


def train(name: str, seed: int, steps: int) -> tuple[itoflow.GenerativeModel, float]:
    """The model and the seconds that training took."""
    coupling, conditional = RUNS[name]
    torch.manual_seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002 - torchcfm draws from its plan by it
    model = composed(coupling, conditional)
    peer = peer_loss(model, coupling) if name.startswith("torchcfm") else None
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    g, start = torch.Generator().manual_seed(seed), time.process_time()
    for _ in range(steps):
        x1, (x, label) = eight_gaussians(BATCH, g), two_moons(BATCH, g)
        optimizer.zero_grad()
        if peer is not None:
            loss = peer(x, x1)
        else:
            loss = model.loss(x, {"class": label} if conditional else None, x1=x1, generator=g).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model, time.process_time() - start


def distances(model: itoflow.GenerativeModel, conditional: bool, seed: int) -> dict[str, float]:
    """Squared 2-Wasserstein distance to fresh points after one Euler step and by dopri5, and between fresh points."""
    found: dict[str, list[float]] = {"one step": [], "adaptive": [], "floor": []}
    g = torch.Generator().manual_seed(10_000 + seed)
    for _ in range(EVALUATIONS):
        x1, (x, label), (other, _) = eight_gaussians(N, g), two_moons(N, g), two_moons(N, g)
        cond = {"class": label} if conditional else None
        euler = model.sample(x=x1, cond=cond, sampler={"name": "euler", "steps": 1})
        adaptive = model.sample(x=x1, cond=cond, sampler={"name": "dopri5", "rtol": 1e-4, "atol": 1e-4})
        for key, y in (("one step", euler), ("adaptive", adaptive), ("floor", other)):
            found[key].append(squared_wasserstein(y, x))
    return {key: statistics.mean(values) for key, values in found.items()}


def table(results: list[dict[str, object]]) -> None:
    """Mean over seeds, and each seed."""
    print(
        f"\n{'run':22} {'one Euler step':>16} {'adaptive':>10} {'floor':>8} {'s':>6}   each seed (one step / adaptive)"
    )
    for name in RUNS:
        rows = sorted((r for r in results if r["run"] == name), key=lambda r: r["seed"])
        if rows:
            mean = {k: statistics.mean(float(r[k]) for r in rows) for k in ("one step", "adaptive", "floor", "seconds")}
            each = ", ".join(f"{r['one step']:.3f} / {r['adaptive']:.3f}" for r in rows)
            print(
                f"{name:22} {mean['one step']:16.4f} {mean['adaptive']:10.4f} {mean['floor']:8.4f} "
                f"{mean['seconds']:6.0f}   {each}"
            )


def costs() -> Iterator[str]:
    """CPU milliseconds a batch, median and least, and the mean squared distance of the pairs."""
    for n, m, repeats in ((256, 256, 100), (256, 512, 100), (1024, 1024, 20), (4096, 4096, 3)):
        for name in itoflow.available("coupling"):
            coupling, seconds, g = itoflow.create("coupling", name), [], torch.Generator().manual_seed(0)
            for _ in range(repeats):
                (x, label), x1 = two_moons(n, g), eight_gaussians(m, g)
                start = time.process_time()
                pairs = coupling(x, x1, {"class": label}, generator=g)
                seconds.append(1e3 * (time.process_time() - start))
            yield (
                f"{n:5} x {m:4}  {name:30} {statistics.median(seconds):9.2f} ms {min(seconds):9.2f} ms "
                f"{transport_cost(x, x1[pairs]):8.2f}"
            )


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--costs", action="store_true", help="measure what a batch costs, and train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    if options.results and options.results.exists():
        results = [json.loads(line) for line in options.results.read_text().splitlines()]
    for seed in [] if options.costs else options.seeds:
        for name in options.runs:
            if any((r["run"], r["seed"], r["steps"]) == (name, seed, options.steps) for r in results):
                continue
            try:
                model, seconds = train(name, seed, options.steps)
            except ModuleNotFoundError as error:
                print(f"{name}: {error}; skipped")
                continue
            row = {"run": name, "seed": seed, "steps": options.steps, "seconds": seconds}
            results.append({**row, **distances(model, RUNS[name][1], seed)})
            print(results[-1], flush=True)
            if options.results:
                with options.results.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    if not options.costs:
        table(results)
    print("\ncost of a batch: CPU time, median and least; mean squared distance of the pairs")
    for line in costs():
        print(line, flush=True)


if __name__ == "__main__":
    main()
