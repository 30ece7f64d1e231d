"""Time per step of samplers over the bare network calls, with the peers' in the same run.

A small MLP, 256 points of a plane, 200 steps. Every sampler runs once in each of 15 rounds, and the figure is its
fastest round over the fastest round of the calls alone: the fastest is what the machine's other load disturbs least.
Everything that a call of the sampler does is counted. A table is computed and folded at the first call with a process
and kept; the last column is what that adds to the first call.

Peers, where installed: azula 0.11.1, diffusers 0.42.1, flow_matching 1.0.10, torchdiffeq.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from itoflow import NetworkField, Parametrization, available, create
from itoflow.folding import folded
from itoflow.testing.problems import Exploding, Preserving, Straight

STEPS, BATCH, ROUNDS = 200, 256, 15
OURS = {
    "one step": ["euler", "ddim", "ancestral", "euler-maruyama"],
    "multistep": [
        "adams",
        "exponential-adams",
        "deis",
        "dpm-solver++",
        "unipc",
        "sde-dpm-solver++",
        "sa-solver",
        "stochastic-adams",
    ],
}

kept: dict[str, Callable[[], object]] = {}
"""How the table of each of our samplers is made and folded."""

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)
torch.manual_seed(0)
mlp = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
x = torch.randn(BATCH, 2)


def velocity(y: Tensor, t: Tensor) -> Tensor:
    """The network as a function of points and one time."""
    out: Tensor = mlp(torch.cat([y, t.expand(len(y), 1)], 1))
    return out


class Network(nn.Module):
    """The same network as itoflow calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, y: Tensor, t: Tensor, cond: object) -> Tensor:
        """(B, 2) for points (B, 2) and times (B,)."""
        out: Tensor = self.mlp(torch.cat([y, t[:, None]], 1))
        return out


@torch.no_grad()
def calls() -> None:
    """The network alone."""
    network, t = Network(), torch.full((BATCH,), 0.5)
    for _ in range(STEPS):
        network(x, t, None)


@torch.no_grad()
def by_hand() -> None:
    """Euler as one writes it."""
    y, ts = x, torch.linspace(0, 1, STEPS + 1)
    for a, b in pairwise(ts):
        y = y + (b - a) * velocity(y, a)


@torch.no_grad()
def by_hand_with_noise() -> None:
    """Euler-Maruyama as one writes it."""
    y, ts = x, torch.linspace(0, 1, STEPS + 1)
    for a, b in pairwise(ts):
        y = y + (b - a) * velocity(y, a) + (b - a).sqrt() * torch.randn_like(y)


def ours() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """itoflow's samplers: on a straight path by velocity, on a preserving one by v, on an exploding one by F."""
    fields = {
        "straight, velocity": NetworkField(
            Network(), Straight(), Parametrization(prediction="velocity", scale_input=False)
        ),
        "preserving, v": NetworkField(Network(), Preserving(), Parametrization(prediction="v")),
        "exploding, edm": NetworkField(Network(), Exploding(), Parametrization(prediction="edm", data_std=0.5)),
    }
    for kind, names in OURS.items():
        for name in names:
            if name not in available("sampler"):
                continue
            sampler = create("sampler", name).replace(steps=STEPS)
            for where, field in fields.items():
                kept[f"itoflow {name} ({where})"] = lambda s=sampler, f=field: folded(s.table(f.process), f, x)
                yield kind, f"itoflow {name} ({where})", lambda s=sampler, f=field: s(f, x)


def peers() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """The peers that are installed."""
    try:
        import azula.sample
        from azula.denoise import Denoiser, DiracPosterior
        from azula.noise import RectifiedSchedule

        class Den(Denoiser):
            def __init__(self) -> None:
                super().__init__()
                self.schedule = RectifiedSchedule()

            def forward(self, y: Tensor, t: Tensor, **_: object) -> object:
                return DiracPosterior(velocity(y, t))

        for kind, name in (("one step", "DDIM"), ("one step", "Ito"), ("multistep", "zEAB"), ("multistep", "xEAB")):
            sampler = getattr(azula.sample, f"{name}Sampler")(Den(), steps=STEPS, silent=True)
            yield kind, f"azula {name}", lambda s=sampler: s(x)
    except ImportError:
        print("azula is not installed")
    try:
        from flow_matching.solver import ODESolver

        class Wrapped(nn.Module):
            def forward(self, x: Tensor, t: Tensor, **_: object) -> Tensor:
                return velocity(x, t)

        solver = ODESolver(velocity_model=Wrapped())
        yield "one step", "flow_matching euler", lambda: solver.sample(x_init=x, step_size=1 / STEPS, method="euler")
    except ImportError:
        print("flow_matching is not installed")
    try:
        from torchdiffeq import odeint

        ts = torch.linspace(0, 1, STEPS + 1)
        run = torch.no_grad()(lambda: odeint(lambda t, y: velocity(y, t), x, ts, method="euler"))
        yield "one step", "torchdiffeq euler", run
    except ImportError:
        print("torchdiffeq is not installed")
    try:
        import diffusers

        def scheduled(scheduler: object) -> Callable[[], object]:
            @torch.no_grad()
            def run() -> None:
                scheduler.set_timesteps(STEPS)
                y = x
                for t in scheduler.timesteps:
                    y = scheduler.step(velocity(y, t / 1000), t, y).prev_sample

            return run

        yield "one step", "diffusers flow euler", scheduled(diffusers.FlowMatchEulerDiscreteScheduler())
        yield "one step", "diffusers ddim", scheduled(diffusers.DDIMScheduler())
        yield "multistep", "diffusers dpm-solver++ 2M", scheduled(diffusers.DPMSolverMultistepScheduler())
        yield "multistep", "diffusers unipc 2", scheduled(diffusers.UniPCMultistepScheduler())
    except ImportError:
        print("diffusers is not installed")


def main() -> None:
    """Print the table."""
    hand = [("Euler written by hand", by_hand), ("Euler-Maruyama written by hand", by_hand_with_noise)]
    runs = [("", "network calls alone", calls), *(("one step", *run) for run in hand), *ours(), *peers()]
    for _, _, run in runs:
        run()
    times = {name: [] for _, name, _ in runs}
    for _ in range(ROUNDS):
        for _, name, run in runs:
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    bare = min(times["network calls alone"])
    print(f"{STEPS} steps, batch {BATCH}, {ROUNDS} rounds, one thread; ratio of minima (of medians in brackets)")
    middle = ROUNDS // 2
    for kind in ("", "one step", "multistep"):
        print(f"\n{kind or 'floor'}")
        for _, name, _ in sorted((r for r in runs if r[0] == kind), key=lambda r: min(times[r[1]])):
            fastest, median = min(times[name]), sorted(times[name])[middle]
            ratio = f"{fastest / bare:.3f} ({median / sorted(times['network calls alone'])[middle]:.3f})"
            first = f"  first call +{timed(kept[name]) / bare:.2f}" if name in kept else ""
            print(f"  {name:48s} {fastest / STEPS * 1e6:8.1f} us a step   {ratio}{first}")


def timed(run: Callable[[], object]) -> float:
    """Seconds of the fastest of three runs."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    main()
