r"""The likelihood of a run's data: nats, bits per dimension, and what they are worth.

For each example x of a part, with K dequantisation draws y_1 ... y_K of it,

    L_1 = mean_k log p(y_k)                       a lower bound of log of the mass of x's cell, over w^D;          (1)
    L_K = log mean_k p(y_k)  >=  L_1              the same bound by importance weighting, tight for K -> inf.      (2)

(2) needs the log p(y_k) without noise: with Hutchinson's estimate the mean of exponentials counts its noise as density,
so that it is given for the exact divergence alone. The variational bound of the reverse SDE, of `itoflow.bound`, is on
the first draw.

Every figure comes with its standard error over the examples. The error of the solver is estimated on some examples,
solved again with a tenth of the tolerance and the same noise and probes; where probes are used, these examples are also
solved with the exact divergence, the difference being Hutchinson's, with its standard error. They are also encoded to
the prior and decoded again.

Examples are solved in blocks, as a block shares its steps and the hardest of its examples sets them. `METHOD` holds the
tolerance by the root mean square over an example's values: `max`, the default of `dopri5`, needs three times the
evaluations, for an error of the mean that is far below the standard error either way.

References:
    Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519, equation 8.
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization (Ho et al., 2019),
    https://arxiv.org/abs/1902.00275, section 3.1, for dequantisation as a bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from itoflow import GaussianProcess, GenerativeModel
from itoflow.bound import likelihood_bound
from itoflow.likelihood import LikelihoodOptions, bits_per_dimension
from itoflow_data import Examples, Split
from itoflow_train.values import Values

CHECKED = 64
"""Examples that are solved again for the error of the solver and of the probes."""
BATCH = 64
"""Examples that are solved together."""
METHOD = {"name": "dopri5", "norm": "rms"}
"""The solver."""


@dataclass(frozen=True)
class Estimate:
    """A mean over examples and its standard error, None for one example."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """Of one value for each example, (N,)."""
        return cls(float(values.mean()), float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None)

    def show(self, mean: str, error: str) -> str:
        """Both by their formats."""
        return format(self.mean, mean) + ("" if self.error is None else f" +- {self.error:{error}}")


@dataclass(frozen=True)
class RoundTrip:
    """Root mean square and largest absolute value of decode(encode(x)) - x, over all values of some examples."""

    rms: float
    largest: float


@dataclass(frozen=True)
class Evaluation:
    """The likelihood of one part of the data.

    Arguments:
        examples, draws: how many, and of each how many dequantisations.
        nats: log p of an example, (1), in the units of the data.
        bits: per dimension, of (1).
        weighted_bits: per dimension, of (2); None with one draw or with probes.
        sde_bits: per dimension, at most, of the reverse SDE; None where it was not asked for or cannot be had.
        draw_spread: standard deviation of the mean bits over the draws; 0 for one.
        evaluations: of velocity and divergence, for the hardest block of examples.
        solver: bits at a tenth of the tolerance less those at the tolerance, of some examples.
        probes: bits by probes less those by the exact divergence, of some examples; None where none were used.
        round_trip: what decoding of the encoding misses, of some examples, in the units of the model.
    """

    examples: int
    draws: int
    nats: Estimate
    bits: Estimate
    weighted_bits: Estimate | None
    sde_bits: Estimate | None
    draw_spread: float
    evaluations: int
    solver: Estimate
    probes: Estimate | None
    round_trip: RoundTrip

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return asdict(self)


def evaluate(
    model: GenerativeModel,
    values: Values,
    examples: Examples,
    *,
    draws: int = 4,
    seed: int = 0,
    method: str | Mapping[str, Any] = METHOD,
    rtol: float = 1e-3,
    batch: int = BATCH,
    check: int = CHECKED,
    bound_times: int = 0,
    progress: str | None = None,
    **options: Any,
) -> Evaluation:
    """The likelihood of examples under a model.

    Arguments:
        draws: dequantisations of each example; 1 is used for continuous data.
        seed: of dequantisation and probes.
        method: of solution, as in `itoflow.likelihood.ODEOptions`.
        rtol: relative tolerance of the solver; the absolute is a tenth of it.
        batch: number of examples that are solved together.
        check: number of examples that are solved again.
        bound_times: draws of time of the reverse SDE's bound for each example; 0 leaves it out.
        progress: label of a progress bar, which shows where standard error is a terminal; None shows none.
        options: further options of `itoflow.likelihood.LikelihoodOptions`.
    """
    draws = draws if values.dequantised else 1
    noise = torch.Generator().manual_seed(seed)
    hutchinson = options.get("divergence", "exact") == "hutchinson"
    few = examples[: max(check, 1)]
    total = draws * len(examples) + (3 if hutchinson else 2) * len(few)
    bar = tqdm(total=total, desc=progress, unit="example", leave=False, disable=True if progress is None else None)

    def log_prob(y: Tensor, cond: Any, draw: int = 0, **changed: Any) -> tuple[Tensor, int]:
        probes = torch.Generator().manual_seed(seed + 1 + draw)  # the same for the same examples and draw
        chosen = {**options, "method": method, "rtol": rtol, "batch": batch, "generator": probes, **changed}
        found, evaluations = [], 0
        for part, given in blocks(y, cond):
            block = model.likelihood(part, given, **cast(LikelihoodOptions, chosen))
            found.append(block.log_prob)
            evaluations = max(evaluations, block.evaluations)
            bar.update(len(part))
        return torch.cat(found) + values.log_det(y), evaluations

    def blocks(y: Tensor, cond: Any) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for begin in range(0, len(y), batch):
            part = slice(begin, begin + batch)
            yield values.enter(y[part]), {name: value[part] for name, value in cond.items()}

    def bits(log_prob: Tensor) -> Tensor:
        return bits_per_dimension(log_prob, values.data)

    noisy = [values.noisy(examples.x.double(), noise) for _ in range(draws)]
    solved = [log_prob(y, examples.cond, draw) for draw, y in enumerate(noisy)]
    each = torch.stack([found for found, _ in solved])
    first = noisy[0][: len(few)]
    loose, tight = (bits(log_prob(first, few.cond, rtol=tolerance)[0]) for tolerance in (rtol, rtol / 10))
    exact = bits(log_prob(first, few.cond, divergence="exact")[0]) if hutchinson else None
    bar.close()
    missed = model.round_trip(values.enter(first), few.cond, method=method, rtol=rtol)
    reverse = None
    if bound_times and isinstance(model.process, GaussianProcess):
        found = [
            likelihood_bound(model.field, z, cond, times=bound_times, generator=noise).log_prob
            for z, cond in blocks(noisy[0], examples.cond)
        ]
        reverse = Estimate.of(bits(torch.cat(found) + values.log_det(noisy[0])))
    weighted = each.logsumexp(0) - math.log(draws)
    return Evaluation(
        examples=len(examples),
        draws=draws,
        nats=Estimate.of(each.mean(0)),
        bits=Estimate.of(bits(each.mean(0))),
        weighted_bits=None if hutchinson or draws == 1 else Estimate.of(bits(weighted)),
        sde_bits=reverse,
        draw_spread=float(bits(each).mean(1).std()) if draws > 1 else 0.0,
        evaluations=max(count for _, count in solved),
        solver=Estimate.of(tight - loose),
        probes=None if exact is None else Estimate.of(loose - exact),
        round_trip=RoundTrip(float(missed.square().mean().sqrt()), float(missed.abs().max())),
    )


def table(parts: dict[Split, Evaluation]) -> str:
    """The figures for people."""
    lines = [f"{'':<30}" + "".join(f"{split:>20}" for split in parts)]

    def row(label: str, *cells: str) -> None:
        lines.append(f"{label:<30}" + "".join(f"{cell:>20}" for cell in cells))

    def pm(estimate: Estimate | None, digits: int = 4) -> str:
        return "-" if estimate is None else estimate.show(f".{digits}f", f".{digits}f")

    found = list(parts.values())
    row("examples x draws", *(f"{e.examples} x {e.draws}" for e in found))
    row("log p, nats", *(pm(e.nats, 2) for e in found))
    row("bits per dimension", *(pm(e.bits) for e in found))
    row("  importance-weighted", *(pm(e.weighted_bits) for e in found))
    row("  reverse SDE, at most", *(pm(e.sde_bits) for e in found))
    row("  spread of the draws", *(f"{e.draw_spread:.4f}" for e in found))
    row("  solver (rtol / 10)", *(e.solver.show("+.1e", ".0e") for e in found))
    row("  probes less exact", *("-" if e.probes is None else pm(e.probes) for e in found))
    row("  round trip (largest)", *(f"{e.round_trip.rms:.0e} ({e.round_trip.largest:.0e})" for e in found))
    row("evaluations", *(str(e.evaluations) for e in found))
    return "\n".join(lines)
