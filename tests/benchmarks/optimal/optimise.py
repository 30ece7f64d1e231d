"""Compute what `auto` and the grid `optimal` hold: times and coefficients for each number of network evaluations.

On the circle alpha = cos theta, sigma = sin theta the flow is dx/dtheta = cos(theta) eps - sin(theta) x0 = -F, and
every Gaussian process has this flow up to scale and time (frame `v` of `itoflow_samplers.frames`, c = 1). With p = 3
the times, the corrections, c and S of the method (method.py) are free; from 40 evaluations on p = 4, there are no
corrections, and the steps of the times are a spline. Descent, Adam for the former and L-BFGS for the latter, lowers the
error over that of the best of other methods (objective.py) on a family of mixtures, from s = inf on; a run from s = 80
has the same times but the first, as little is known there. From 7 to 39 evaluations small networks (networks.py) are
held to the errors of what was stored before.

What is stored for 2 to 32, but for 24, was found so, in one to three runs, those of 4, 5, 6, 10 and 18 from what was
stored before. There p is 1 for 2 and 3, and 4 for 32; for 2, 3 and 6 the last run counted the root mean square twice,
and for 10 and 18 the first reached a step further back. 24, 48 and 64 minimise a mean of logarithms of errors, nothing
taken off, over the nineteen mixtures that are written out, all of mean 0.

    python optimise.py 6,10,18 --seconds 60      improves, or adds to, the files of core and itoflow-samplers
"""

from __future__ import annotations

import argparse
import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from families import training, validation
from method import Entry, angles, coefficients, even, pack, run, stretched, unpack
from networks import trained
from objective import Problem, best_of_others, columns, problems, short_of_the_goal
from torch import Tensor

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

SMOOTH, SMOOTH_ORDER, KNOTS, ENDS = 40, 4, 14, 4
"""Evaluations from which there are no corrections, the order, the splines of the steps, and how many are free at either
end."""
SHARE, FEW = 0.2, 6
"""Of the networks, over that of the mixtures, and evaluations up to which they have none, as from `SMOOTH` on."""
SOME = 8
"""How many mixtures a step of Adam sees; of the networks it sees one."""
ROOT = Path(__file__).parents[3]
TIMES = ROOT / "core/itoflow/optimal.json"
COEFFICIENTS = ROOT / "plugins/samplers/src/itoflow_samplers/auto.json"

Judged = list[tuple[Problem, Tensor]]
"""Problems, each with the columns that its own are compared to."""


def ratios(some: Judged, steps: Tensor, order: int, deltas: Tensor, c: Tensor, S: Tensor) -> Tensor:
    """R of each problem, (P, 3)."""
    methods, found = {}, []
    for problem, best in some:
        if problem.start not in methods:
            theta = angles(steps, problem.start)
            methods[problem.start] = theta, coefficients(theta, order, deltas, c, S)
        found.append(columns(run(problem.target, problem.x, *methods[problem.start]), problem) - best)
    return torch.stack(found)


def summary(entry: Entry, made: Judged) -> str:
    """The objective, and for each column the mean ratio and how many of the problems are above 1."""
    with torch.no_grad():
        found = ratios(made, *unpack(entry))
    means = ", ".join(
        f"{mean:.2f} ({above})" for mean, above in zip(found.mean(0).exp(), (found > 0).sum(0), strict=True)
    )
    return f"{float(short_of_the_goal(found)):.4f}: {means}"


def corrected(n: int, entry: Entry, laws: Judged, networks: Judged, seconds: float, rate: float) -> Entry:
    """Adam from `entry`, on some problems at a time; the last iterate, its learning rate falling to zero."""
    steps, order, deltas, c, S = unpack(entry)
    log_c, log_S = c.log(), S.log()
    free = [p.requires_grad_() for p in (steps, log_c, log_S, deltas)]
    optimiser = torch.optim.Adam(free, betas=(0.9, 0.98))
    generator, began = torch.Generator().manual_seed(n), time.process_time()

    def some(of: Judged, count: int) -> Judged:
        return [of[i] for i in torch.randperm(len(of), generator=generator)[:count].tolist()]

    def value(of: Judged) -> Tensor:
        return short_of_the_goal(ratios(of, steps, order, deltas, log_c.exp(), log_S.exp()))

    while (left := 1 - (time.process_time() - began) / seconds) > 0:
        optimiser.param_groups[0]["lr"] = rate * min(1.0, 1.5 * left)
        optimiser.zero_grad()
        loss = value(some(laws, SOME))
        if networks:
            loss = loss + SHARE * value(some(networks, 1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(free, 1.0)
        optimiser.step()
    return pack(steps.detach(), order, deltas.detach(), log_c.detach().exp(), log_S.detach().exp())


def smooth(n: int, entry: Entry, laws: Judged, seconds: float) -> Entry:
    """L-BFGS from the steps of `entry`, on all problems at once; the best iterate."""
    basis = splines(n - 1)
    steps, _, _, c, S = unpack(entry)
    normal = basis.T @ basis + 1e-4 * torch.eye(basis.shape[1])
    weights = torch.linalg.solve(normal, basis.T @ steps).requires_grad_()
    log_c, log_S = (p.log().requires_grad_() for p in (c, S))
    none, began = torch.zeros(n, SMOOTH_ORDER), time.process_time()
    optimiser = torch.optim.LBFGS([weights, log_c, log_S], max_iter=8, history_size=40, line_search_fn="strong_wolfe")
    best, found = math.inf, entry

    def closure() -> Tensor:
        nonlocal best, found
        optimiser.zero_grad()
        value = short_of_the_goal(ratios(laws, basis @ weights, SMOOTH_ORDER, none, log_c.exp(), log_S.exp()))
        value.backward()
        if float(value.detach()) < best:
            best = float(value.detach())
            found = pack((basis @ weights).detach(), SMOOTH_ORDER, None, log_c.detach().exp(), log_S.detach().exp())
        return torch.nan_to_num(value, nan=1e3)

    before = math.inf
    while time.process_time() - began < seconds and (math.isinf(before) or before - best > 2e-3):
        before = best
        optimiser.step(closure)
    return found


def splines(n: int) -> Tensor:
    """Cubic B-splines on [0, 1] at n places, (n, KNOTS), and a unit vector for each of the first and last places."""
    places, cells = torch.linspace(0, 1, n).clamp(max=1 - 1e-9), KNOTS - 3
    at = torch.arange(-3, cells + 4) / cells
    found = [((places >= low) & (places < high)).double() for low, high in pairwise(at)]
    for d in range(1, 4):
        found = [
            (places - at[i]) / (at[i + d] - at[i]) * found[i]
            + (at[i + d + 1] - places) / (at[i + d + 1] - at[i + 1]) * found[i + 1]
            for i in range(len(found) - 1)
        ]
    unit = torch.eye(n)
    return torch.cat([torch.stack(found, 1), unit[:, :ENDS], unit[:, n - ENDS :]], 1)


def load() -> dict[int, Entry]:
    """What the packages hold."""
    times, rest = (json.loads(path.read_text(encoding="utf-8")) for path in (TIMES, COEFFICIENTS))
    return {
        int(n): {"order": rest[n]["order"], "w": w, "phi": rest[n]["bend"], "delta": rest[n]["delta"]}
        for n, w in times.items()
    }


def store(entries: dict[int, Entry]) -> None:
    """One line for each number of evaluations, eight significant digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(v) for v in value]
        return value if isinstance(value, int) else float(f"{value:.8g}")

    def write(path: Path, values: dict[int, Any]) -> None:
        lines = ",\n".join(f'"{n}": {json.dumps(value)}' for n, value in sorted(values.items()))
        path.write_text("{\n" + lines + "\n}\n", encoding="utf-8")

    write(TIMES, {n: rounded(e["w"]) for n, e in entries.items()})
    rest = {
        n: {"order": e["order"], "bend": rounded(e["phi"]), "delta": rounded(e["delta"])} for n, e in entries.items()
    }
    write(COEFFICIENTS, rest)


def start(n: int, stored: dict[int, Entry], made: Judged) -> Entry:
    """Where the descent for n evaluations starts: what is stored for it, or the best of some guesses."""
    if n in stored:
        return stored[n]
    guesses = [even(n, last, 0.2, S) for last in (0.4, 0.2, 0.1, 0.05, 0.03) for S in (1.5, 4.0)]
    if near := [m for m in stored if m < SMOOTH or n >= SMOOTH]:
        entry = stored[min(near, key=lambda m: abs(math.log(m / n)))]
        guesses.append(stretched(entry, n, corrected=False))
        if min(n, len(entry["delta"])) > 8 and n < SMOOTH:
            guesses.append(stretched(entry, n, corrected=True))
    with torch.no_grad():
        return min(guesses, key=lambda guess: float(ratios(made, *unpack(guess))[:, 0].mean()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("evaluations")
    parser.add_argument("--seconds", type=float, default=60.0, help="of computing, times 1 + n / 9")
    parser.add_argument("--rate", type=float, default=0.01, help="of Adam; less to refine what is stored")
    options = parser.parse_args()
    judging = dict(list(validation().items())[::5])
    family, others = problems(training(), 360), problems(judging, 360)
    nets = problems(trained(), 240)
    for n in map(int, options.evaluations.split(",")):
        laws, judges = ([(problem, best_of_others(problem, n)) for problem in of] for of in (family, others))
        entry = start(n, load(), laws[::5])
        with torch.no_grad():
            held = ratios([(problem, torch.zeros(3)) for problem in nets], *unpack(entry))
        networks = list(zip(nets, held, strict=True))
        for when in ("before", "after"):
            shown = {"laws": laws, "networks": networks, "validation": judges}
            print(n, when, *(f"{name} {summary(entry, of)};" for name, of in shown.items()), flush=True)
            if when == "before":
                seconds = options.seconds * (1 + n / 9)
                if n >= SMOOTH:
                    entry = smooth(n, entry, laws, seconds)
                else:
                    entry = corrected(n, entry, laws, networks if n > FEW else [], seconds, options.rate)
        store({**load(), n: entry})


if __name__ == "__main__":
    main()
