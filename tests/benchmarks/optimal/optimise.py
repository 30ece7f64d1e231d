r"""Compute what `auto` and the grid `optimal` hold: times and coefficients for each number of network evaluations.

On the circle alpha = cos theta, sigma = sin theta the flow is dx/dtheta = cos(theta) eps - sin(theta) x0 = -F, and
every Gaussian process has this flow up to scale and time (frame `v` of `itoflow_samplers.frames`, c = 1). A method of
n evaluations at theta_0 > ... > theta_(n-1), the last followed by a step to theta_n = 0, is

    x_(k+1) = x_k + sum_j b_kj F_(k-j),   b_kj = beta_kj + (theta_k - theta_(k+1)) delta_kj,   sum_j delta_kj = 0

with beta_kj those of exponential Adams methods, a predictor of order p and a corrector of order p + 1 in one, in
phi = asinh((1/c) / (1/s + 1/S)), s = tan theta. With p = 3, theta, delta, c and S are free; from 40 evaluations on
p = 4, delta is 0 and the steps of theta are a spline.
Descent, Adam for the former and L-BFGS for the latter, lowers, averaged over the family and the starts s = 80 and inf,

    weight log(rmse) + (1 - weight) log(geometric mean error)     of the endpoint, against 500 Runge-Kutta steps.

From 13 to 39 evaluations small networks (networks.py) have a share of 0.3 in it; of what is stored, only 18 was found
so, 24 and 32 without them.

The weight is 0.8 up to 12 evaluations, where medians are small beside RMSEs, and 0.5 above. Half of the points
start near a boundary between modes: endpoints alone let errors on the way cancel at the end, and these points do not
forgive them.

    python optimise.py 6,10,18 --seconds 60      improves, or adds to, the files of core and itoflow-samplers
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from families import Mixture, held_out, training
from networks import Network, trained
from torch import Tensor

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

NODES = 24
ORDER, DEPTH = 3, 5
"""Of the predictor, and how far back the corrections reach."""
SMOOTH, SMOOTH_ORDER, KNOTS, ENDS = 40, 4, 14, 4
"""Evaluations from which there are none, the order, the splines of the steps, and how many are free at either end."""
SHARE, FEW = 0.3, 12
"""Of the networks in what is lowered, and evaluations up to which they have none, as from `SMOOTH` on."""
FINE, COARSE = 0.1, 8.0
"""Of the variable in which times are interpolated, as in itoflow.grids."""
STARTS = {"80": math.atan(80.0), "inf": math.pi / 2}
ROOT = Path(__file__).parents[3]
TIMES = ROOT / "core/itoflow/optimal.json"
COEFFICIENTS = ROOT / "plugins/samplers/src/itoflow_samplers/auto.json"


Target = Mixture | Network


class Problem(NamedTuple):
    """A target, the name of a start, x there and the exact endpoint."""

    target: Target
    start: str
    x: Tensor
    exact: Tensor


def flow(target: Target, x: Tensor, theta: float, steps: int = 500) -> Tensor:
    """The endpoint by Runge-Kutta of order 4 in w = asinh(1/s), down to the target's last s, and x0 there."""

    def slope(x: Tensor, w: float) -> Tensor:
        alpha, sigma = math.tanh(w), 1 / math.cosh(w)
        x0 = target.denoise(x, alpha, sigma)
        return -(alpha * (x - alpha * x0) / sigma - sigma * x0) / math.cosh(w)

    w = math.asinh(math.cos(theta) / math.sin(theta))
    h = (math.asinh(1 / target.end) - w) / steps
    for _ in range(steps):
        a = slope(x, w)
        b = slope(x + h / 2 * a, w + h / 2)
        c = slope(x + h / 2 * b, w + h / 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c, w + h))
        w += h
    last = math.atan(target.end)
    return target.denoise(x, math.cos(last), math.sin(last))


def near_a_boundary(target: Target, z: Tensor, keep: int) -> Tensor:
    """Of the starts z those whose endpoints move most when they do, but for the last 0.5 per cent.

    They lie near a boundary between modes, and an error on the way there sends them to the wrong one.
    """
    moved = z + 1e-4 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    grown = (flow(target, moved, math.pi / 2, 80) - flow(target, z, math.pi / 2, 80)).norm(dim=1)
    return z[grown.argsort(descending=True)[len(z) // 200 :][:keep]]


def problems(family: Mapping[str, Target], points: int, near: int = 0) -> list[Problem]:
    """Of each target, from each of its starts; `near` of the points from near a boundary."""
    made = []
    for i, target in enumerate(family.values()):
        z = torch.randn(points, target.size, generator=torch.Generator().manual_seed(100 + i))
        if near:
            pool = torch.randn(10 * near, target.size, generator=torch.Generator().manual_seed(200 + i))
            z = torch.cat([z[near:], near_a_boundary(target, pool, near)])
        for start in target.starts:
            x = z * math.sin(STARTS[start])
            made.append(Problem(target, start, x, flow(target, x, STARTS[start])))
    return made


def angles(steps: Tensor, start: float) -> Tensor:
    """theta_0 to theta_n from the logarithms of the n - 1 steps in asinh(1/s), counted from s = inf.

    What starts elsewhere takes n steps of equal length in k / n from there, as the grid `optimal` does.
    """
    w, n = torch.cumsum(torch.cat([torch.zeros(1), steps.exp()]), 0), len(steps) + 1
    first = math.asinh(math.cos(start) / math.sin(start))
    if start == STARTS["inf"]:
        return torch.cat([torch.tensor([start]), torch.atan(1 / torch.sinh(w[1:])), torch.zeros(1)])
    g = torch.cat([torch.asinh(1 / FINE / (torch.sinh(w) + 1 / COARSE)), torch.zeros(1)])
    at = math.asinh(1 / FINE / (math.sinh(first) + 1 / COARSE))
    i = int((g.detach() > at).sum()) - 1
    place = i + (g[i] - at) / (g[i] - g[i + 1])
    places = place + (1 - place / n) * torch.arange(1, n)
    low = places.detach().floor().long()
    q = FINE * (g[low] + (places - low) * (g[low + 1] - g[low])).sinh()
    return torch.cat([torch.tensor([start]), torch.atan2(q, 1 - q / COARSE), torch.zeros(1)])


def phi_of(theta: Tensor, c: Tensor, S: Tensor) -> Tensor:
    return torch.asinh(theta.sin() / (theta.cos() + theta.sin() / S) / c)


def coefficients(theta: Tensor, order: int, deltas: Tensor, c: Tensor, S: Tensor) -> Tensor:
    """b, (n, depth); deltas are (n, depth - 1), depth at least order + 1."""
    depth = deltas.shape[1] + 1
    n, phi = len(theta) - 1, phi_of(theta, c, S)
    i = torch.arange(1, NODES)
    off = i / (4 * i * i - 1.0).sqrt()
    jacobi = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    x, measure = jacobi.eigenvalues, 2 * jacobi.eigenvectors[0] ** 2
    low, high = phi[:-1, None], phi[1:, None]
    at = (low + high) / 2 + (high - low) / 2 * x
    q = c * at.sinh()
    density = -c * at.cosh() / ((1 - q / S) ** 2 + q * q) * measure * (high - low) / 2

    def beta(i: Tensor, back: range) -> list[Tensor]:
        """Of the steps i, through the values `back` of them."""
        found = []
        for j in back:
            basis = torch.ones(len(i), NODES)
            for m in back:
                if m != j:
                    basis = basis * (at[i] - phi[i - m, None]) / (phi[i - j, None] - phi[i - m, None])
            found.append((basis * density[i]).sum(1))
        return found

    rows, missed = [], torch.zeros(1, depth)
    for k in range(1, min(order, n) + 1):  # the first rows alone, then all that have full history at once
        i = torch.arange(k - 1, k if k < order else n)
        none = [torch.zeros(len(i))] * (depth - k - 1)
        predictor, corrector = beta(i, range(k)), beta(i, range(-1, k))
        predicted = torch.stack([*predictor, *none, torch.zeros(len(i))], 1)
        behind = torch.stack([torch.zeros(len(i)), *predictor, *none], 1)
        rows.append((predicted, torch.stack([*corrector, *none], 1) - behind))
    predicted, missed = (torch.cat(parts) for parts in zip(*rows, strict=True))
    missed = torch.cat([torch.zeros(1, depth), missed[:-1]])
    used = (torch.arange(n)[:, None] >= torch.arange(1, depth)).double() * deltas
    h = (theta[:-1] - theta[1:])[:, None]
    return predicted + missed + h * torch.cat([-used.sum(1, keepdim=True), used], 1)


def run(target: Target, x: Tensor, theta: Tensor, b: Tensor) -> Tensor:
    """The endpoint of the method."""
    history: list[Tensor] = []
    for k in range(len(b)):
        alpha, sigma = theta[k].cos(), theta[k].sin()
        x0 = target.denoise(x, alpha, sigma)
        history = [sigma * x0 - alpha / sigma * (x - alpha * x0), *history][: b.shape[1]]
        x = x + torch.tensordot(b[k, : len(history)], torch.stack(history), 1)
    return x


def errors(x: Tensor, exact: Tensor) -> Tensor:
    """Root mean square over dimensions, per point."""
    return (x - exact).square().mean(1).clamp(min=1e-26).sqrt()


def judged(entry: dict[str, Any], made: list[Problem]) -> tuple[float, float]:
    """Median and RMSE, geometric means over targets and starts."""
    medians, rmses = [], []
    steps, order, deltas, c, S = unpack(entry)
    with torch.no_grad():
        for target, start, x, exact in made:
            theta = angles(steps, STARTS[start])
            e = errors(run(target, x, theta, coefficients(theta, order, deltas, c, S)), exact)
            medians.append(float(e.median().log()))
            rmses.append(float(e.square().mean().log() / 2))
    return math.exp(sum(medians) / len(made)), math.exp(sum(rmses) / len(made))


def summary(entry: dict[str, Any], made: list[Problem]) -> str:
    return "{:.2e} ({:.2e})".format(*judged(entry, made))


def unpack(entry: dict[str, Any]) -> tuple[Tensor, int, Tensor, Tensor, Tensor]:
    """Logarithms of the steps, order, deltas, c and S."""
    w, order = torch.tensor([0.0, *entry["w"]]), entry["order"]
    deltas = torch.tensor(entry["delta"]) if entry["delta"] else torch.zeros(len(w), order)
    return w.diff().log(), order, deltas, *map(torch.tensor, entry["phi"])


def pack(steps: Tensor, order: int, deltas: Tensor | None, c: Tensor, S: Tensor) -> dict[str, Any]:
    delta: list[list[float]] = []
    if deltas is not None:
        used = torch.arange(len(deltas))[:, None] >= torch.arange(1, deltas.shape[1] + 1)
        delta = (used.double() * deltas).tolist()
    return {"order": order, "w": torch.cumsum(steps.exp(), 0).tolist(), "phi": [float(c), float(S)], "delta": delta}


def even(n: int, last: float, c: float, S: float) -> dict[str, Any]:
    """Uniform in phi, from s = inf to s = last; no delta."""
    ends = phi_of(torch.tensor([math.pi / 2, math.atan(last)]), torch.tensor(c), torch.tensor(S))
    q = c * torch.linspace(float(ends[0]), float(ends[1]), n).sinh()
    w = torch.asinh((1 - q / S) / q)[1:]
    return {"order": ORDER, "w": w.tolist(), "phi": [c, S], "delta": torch.zeros(n, DEPTH - 1).tolist()}


def stretched(entry: dict[str, Any], n: int, *, corrected: bool) -> dict[str, Any]:
    """The method of another number of evaluations, interpolated along the run, delta behind the start only."""
    m = len(entry["w"]) + 1
    theta = angles(unpack(entry)[0], math.pi / 2)
    phi = phi_of(theta, torch.tensor(0.1), torch.tensor(8.0))
    place = torch.arange(1, n) * (m / n)
    low = place.floor().long().clamp(max=m - 1)
    q = 0.1 * (phi[low] + (place - low) * (phi[low + 1] - phi[low])).sinh()
    delta = torch.zeros(n, DEPTH - 1)
    if corrected:
        source = torch.tensor(entry["delta"])
        rest = DEPTH + torch.arange(n - DEPTH) * ((m - 1 - DEPTH) / max(n - 1 - DEPTH, 1))
        left = rest.floor().long().clamp(0, m - 2)
        inner = source[left] + (rest - left)[:, None] * (source[left + 1] - source[left])
        delta = torch.cat([source[:DEPTH], inner])
    w = torch.asinh((1 - q / 8.0) / q).tolist()
    return {"order": ORDER, "w": w, "phi": entry["phi"], "delta": delta.tolist()}


def loss(made: list[Problem], weight: float, steps: Tensor, order: int, deltas: Tensor, c: Tensor, S: Tensor) -> Tensor:
    """Averaged over the problems."""
    methods = {}
    for start, at in STARTS.items():
        theta = angles(steps, at)
        methods[start] = theta, coefficients(theta, order, deltas, c, S)
    parts: dict[type, list[Tensor]] = {}
    for target, start, x, exact in made:
        e = errors(run(target, x, *methods[start]), exact)
        value = weight * e.square().mean().log() / 2 + (1 - weight) * e.log().mean()
        parts.setdefault(type(target), []).append(value)
    means = {kind: torch.stack(values).mean() for kind, values in parts.items()}
    laws, nets = (means.get(kind, torch.zeros(())) for kind in (Mixture, Network))
    share = {1: float(Network in means)}.get(len(means), SHARE)
    return (1 - share) * laws + share * nets


def corrected(n: int, entry: dict[str, Any], made: list[Problem], seconds: float) -> dict[str, Any]:
    """Adam from `entry`, on some problems and points at a time; the last iterate, its learning rate falling to zero."""
    steps, order, deltas, c, S = unpack(entry)
    log_c, log_S = c.log(), S.log()
    free = [p.requires_grad_() for p in (steps, log_c, log_S)]
    optimiser = torch.optim.Adam([{"params": free}, {"params": [deltas.requires_grad_()]}], betas=(0.9, 0.98))
    generator, began = torch.Generator().manual_seed(n), time.process_time()
    while (left := 1 - (time.process_time() - began) / seconds) > 0:
        for group, rate in zip(optimiser.param_groups, (0.02, 0.01), strict=True):
            group["lr"] = rate * min(1.0, 2 * left)
        some = []
        for i in torch.randperm(len(made), generator=generator)[:8].tolist():
            part = torch.randperm(len(made[i].x), generator=generator)[:144]
            some.append(made[i]._replace(x=made[i].x[part], exact=made[i].exact[part]))
        optimiser.zero_grad()
        loss(some, weight_of(n), steps, order, deltas, log_c.exp(), log_S.exp()).backward()
        torch.nn.utils.clip_grad_norm_([*free, deltas], 1.0)
        optimiser.step()
    return pack(steps.detach(), order, deltas.detach(), log_c.detach().exp(), log_S.detach().exp())


def smooth(n: int, entry: dict[str, Any], made: list[Problem], seconds: float) -> dict[str, Any]:
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
        value = loss(made, weight_of(n), basis @ weights, SMOOTH_ORDER, none, log_c.exp(), log_S.exp())
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


def weight_of(n: int) -> float:
    """Of the RMSE."""
    return 0.8 if n <= 12 else 0.5


def load() -> dict[int, dict[str, Any]]:
    """What the packages hold."""
    times, rest = (json.loads(path.read_text(encoding="utf-8")) for path in (TIMES, COEFFICIENTS))
    return {
        int(n): {"order": rest[n]["order"], "w": w, "phi": rest[n]["bend"], "delta": rest[n]["delta"]}
        for n, w in times.items()
    }


def store(entries: dict[int, dict[str, Any]]) -> None:
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


def start(n: int, stored: dict[int, dict[str, Any]], made: list[Problem]) -> dict[str, Any]:
    """Where the descent for n evaluations starts: what is stored for it, or the best of some guesses."""
    if n in stored:
        return stored[n]
    guesses = [even(n, last, 0.2, S) for last in (0.4, 0.2, 0.1, 0.05, 0.03) for S in (1.5, 4.0)]
    if near := [m for m in stored if m < SMOOTH or n >= SMOOTH]:
        entry = stored[min(near, key=lambda m: abs(math.log(m / n)))]
        guesses.append(stretched(entry, n, corrected=False))
        if min(n, len(entry["delta"])) > 8 and n < SMOOTH:
            guesses.append(stretched(entry, n, corrected=True))
    return min(guesses, key=lambda e: judged(e, made)[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("evaluations")
    parser.add_argument("--seconds", type=float, default=50.0, help="of computing, times 1 + n / 32")
    options = parser.parse_args()
    laws, others = problems(training(), 320, near=160), problems(held_out(), 320)
    networks = problems(trained(), 256)
    for n in map(int, options.evaluations.split(",")):
        made = [*laws, *networks] if FEW < n < SMOOTH else laws
        entry = start(n, load(), laws[::5])
        for when in ("before", "after"):
            print(
                n,
                when,
                *(
                    f"{name} {summary(entry, of)}"
                    for name, of in (("laws", laws), ("networks", networks), ("held out", others))
                ),
                flush=True,
            )
            if when == "before":
                entry = (smooth if n >= SMOOTH else corrected)(n, entry, made, options.seconds * (1 + n / 32))
        store({**load(), n: entry})


if __name__ == "__main__":
    main()
