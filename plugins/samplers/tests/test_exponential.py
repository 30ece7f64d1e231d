"""DPM-Solver++ and UniPC against the papers' algorithms, written out a second time, on two paths."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import pytest
import torch

from itoflow import GaussianProcess, OptionError
from itoflow.testing.problems import Preserving, Straight, mixture, seeded
from itoflow.testing.samplers import Watched
from itoflow_samplers.dpm_solver import DPMSolver
from itoflow_samplers.unipc import UniPC


class VP(GaussianProcess):
    """beta = 0.1 + 19.9 t."""

    t_min: float = 1e-3

    def alpha(self, t):
        return torch.exp(-(0.1 * t + 19.9 * t**2 / 2) / 2)

    def sigma(self, t):
        return (-torch.expm1(-(0.1 * t + 19.9 * t**2 / 2))).sqrt()


class Line(Straight):
    """alpha = 1 - t, sigma = t, away from its singular ends."""

    grid: ClassVar = "logit"
    t_min: float = 0.02
    t_max: float = 0.98


PROCESSES = [VP(), Line()]


def at(value):
    return torch.tensor(value, dtype=torch.float64)


class Path:
    """alpha, sigma and lambda of a process, and its exact x0."""

    def __init__(self, process):
        self.process, self.oracle = process, mixture(process)

    def __call__(self, t):
        a, s = float(self.process.alpha(at(t))), float(self.process.sigma(at(t)))
        return a, s, math.log(a / s)

    def time(self, lam):
        return float(self.process.log_snr_inverse(at([2 * lam])))

    def x0(self, x, t):
        return self.oracle(x, at(t)).x0


def dpm_2m(path, x, times):
    """Algorithm 2 of DPM-Solver++."""
    before = None
    for t, s in pairwise(times):
        (_, sigma_t, lam_t), (alpha_s, sigma_s, lam_s) = path(t), path(s)
        h, d0 = lam_s - lam_t, path.x0(x, t)
        d = d0
        if before is not None:
            r = (lam_t - before[1]) / h
            d = (1 + 1 / (2 * r)) * d0 - 1 / (2 * r) * before[0]
        x = sigma_s / sigma_t * x - alpha_s * (math.exp(-h) - 1) * d
        before = d0, lam_t
    return x


def dpm_3m(path, x, times):
    """Taylor's formula of order 3 with the derivatives of the parabola through three estimates, and phi-functions."""
    kept = []
    for t, s in pairwise(times):
        (_, sigma_t, lam_t), (alpha_s, sigma_s, lam_s) = path(t), path(s)
        h = lam_s - lam_t
        kept = [(path.x0(x, t), lam_t), *kept][:3]
        if len(kept) == 2:
            x = dpm_2m_step(path, x, t, s, kept)
            continue
        phi1 = math.expm1(-h)
        x_next = sigma_s / sigma_t * x - alpha_s * phi1 * kept[0][0]
        if len(kept) == 3:
            (d0, l0), (d1, l1), (d2, l2) = kept
            first, second = (d0 - d1) / (l0 - l1), (d1 - d2) / (l1 - l2)
            curvature = 2 * (first - second) / (l0 - l2)
            slope = first + curvature / 2 * (l0 - l1)
            phi2 = (phi1 + h) / h**2
            x_next = x_next + alpha_s * h**2 * phi2 * slope + alpha_s * h**3 * ((0.5 - phi2) / h) * curvature
        x = x_next
    return x


def dpm_2m_step(path, x, t, s, kept):
    (_, sigma_t, lam_t), (alpha_s, sigma_s, lam_s) = path(t), path(s)
    h = lam_s - lam_t
    r = (lam_t - kept[1][1]) / h
    d = (1 + 1 / (2 * r)) * kept[0][0] - 1 / (2 * r) * kept[1][0]
    return sigma_s / sigma_t * x - alpha_s * (math.exp(-h) - 1) * d


def dpm_2s(path, x, times):
    """Algorithm 1 of DPM-Solver++ with r = 1/2."""
    for t, s in pairwise(times):
        (_, sigma_t, lam_t), (alpha_s, sigma_s, lam_s) = path(t), path(s)
        h, r, d0 = lam_s - lam_t, 0.5, path.x0(x, t)
        middle = path.time(lam_t + r * h)
        alpha_m, sigma_m, _ = path(middle)
        u = sigma_m / sigma_t * x - alpha_m * (math.exp(-r * h) - 1) * d0
        d = (1 - 1 / (2 * r)) * d0 + 1 / (2 * r) * path.x0(u, middle)
        x = sigma_s / sigma_t * x - alpha_s * (math.exp(-h) - 1) * d
    return x


def dpm_3s(path, x, times):
    """DPM-Solver-3 in x0: r_1 = 1/3, r_2 = 2/3."""
    for t, s in pairwise(times):
        (_, sigma_t, lam_t), (alpha_s, sigma_s, lam_s) = path(t), path(s)
        h, r1, r2, d0 = lam_s - lam_t, 1 / 3, 2 / 3, path.x0(x, t)
        t1, t2 = path.time(lam_t + r1 * h), path.time(lam_t + r2 * h)
        (alpha_1, sigma_1, _), (alpha_2, sigma_2, _) = path(t1), path(t2)
        u1 = sigma_1 / sigma_t * x - alpha_1 * (math.exp(-r1 * h) - 1) * d0
        d1 = path.x0(u1, t1) - d0
        u2 = sigma_2 / sigma_t * x - alpha_2 * (math.exp(-r2 * h) - 1) * d0
        u2 = u2 + alpha_2 * r2 / r1 * ((math.exp(-r2 * h) - 1) / (r2 * h) + 1) * d1
        d2 = path.x0(u2, t2) - d0
        x = sigma_s / sigma_t * x - alpha_s * (math.exp(-h) - 1) * d0
        x = x + alpha_s / r2 * ((math.exp(-h) - 1) / h + 1) * d2
    return x


def unipc(path, x, times, order, variant):
    """Algorithms 1 and 2 of UniPC with equations 5 to 8: rho solves R rho = b, but rho = 1/2 for one unknown."""

    def step(x, t, s, nodes, p):
        (_, sigma_t, lam_t), (alpha_s, sigma_s, lam_s) = path(t), path(s)
        h = lam_s - lam_t
        big = -h if variant == "bh1" else math.expm1(-h)
        d0 = kept[0][0]
        out = sigma_s / sigma_t * x - alpha_s * math.expm1(-h) * d0
        if not nodes:
            return out
        r = [(lam - lam_t) / h for _, lam in nodes]
        differences = [(d - d0) / ratio for (d, _), ratio in zip(nodes, r, strict=True)]
        if len(nodes) == 1:
            rho = [0.5]
        else:
            phi, factorial, b = math.expm1(-h) / -h - 1, 1, []
            for i in range(1, len(nodes) + 1):
                factorial *= i
                b.append(phi * factorial / big)
                phi = phi / -h - 1 / (factorial * (i + 1))
            matrix = at([[ratio ** (i - 1) for ratio in r] for i in range(1, len(nodes) + 1)])
            rho = torch.linalg.solve(matrix, at(b)).tolist()
        return out - alpha_s * big * sum(w * d for w, d in zip(rho, differences, strict=True))

    kept = [(path.x0(x, times[0]), path(times[0])[2])]
    for i, (t, s) in enumerate(pairwise(times)):
        p = min(order, i + 1)
        predicted = step(x, t, s, kept[1:p], p)
        if i == len(times) - 2:
            return predicted
        new = path.x0(predicted, s), path(s)[2]
        x = step(x, t, s, [*kept[1:p], new], p)
        kept = [new, *kept][:order]
    return x


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    ("sampler", "reference"),
    [
        (DPMSolver(order=2), dpm_2m),
        (DPMSolver(order=3), dpm_3m),
        (DPMSolver(order=2, method="singlestep"), dpm_2s),
        (DPMSolver(order=3, method="singlestep"), dpm_3s),
        *[
            (UniPC(order=k, variant=v), lambda path, x, times, k=k, v=v: unipc(path, x, times, k, v))
            for k in (1, 2, 3)
            for v in ("bh1", "bh2")
        ],
    ],
    ids=repr,
)
def test_table_is_the_algorithm_of_the_paper(process, sampler, reference):
    sampler, path = sampler.replace(steps=9, denoise=False), Path(process)
    x = path.oracle.sample(4, process.t_max, generator=seeded(0))
    times, _ = sampler.times(process)
    torch.testing.assert_close(sampler(path.oracle, x), reference(path, x, times), rtol=1e-8, atol=1e-8)


def test_unipc_without_its_corrector_is_dpm_solver_2m():
    """The predictor of order 2 with bh2 is (2) of DPM-Solver++: same coefficients for the network's second input."""
    process = VP()
    rows = UniPC(order=2, variant="bh2", steps=9, denoise=False).table(process).rows
    plain = DPMSolver(order=2, steps=9, denoise=False).table(process).rows
    for pc, dpm in zip(rows[2:], plain[1:], strict=False):
        assert (pc.p, *pc.q) == pytest.approx((dpm.a, *dpm.b), rel=1e-9)


def test_evaluations_are_what_the_docstrings_say():
    for process in (Preserving(), Straight()):
        oracle = mixture(process)
        x = oracle.sample(2, process.t_max, generator=seeded(0))
        singular = isinstance(process, Straight)  # the first step from alpha = 0 is one evaluation of DDIM
        counts = {
            DPMSolver(order=2, steps=7): 7,
            DPMSolver(order=2, steps=7, method="singlestep"): 13 - singular,
            DPMSolver(order=3, steps=7, method="singlestep"): 19 - 2 * singular,
            DPMSolver(order=3, steps=7, start="runge-kutta"): 11 - 2 * singular,
            UniPC(order=2, steps=7): 7,
            UniPC(order=3, steps=7): 7,
            UniPC(order=3, steps=7, start="runge-kutta"): 11 - 2 * singular,
        }
        for sampler, count in counts.items():
            watched = Watched(oracle)
            sampler(watched, x)
            assert watched.calls == count, (sampler, process)


@pytest.mark.parametrize("sampler", [DPMSolver, UniPC])
@pytest.mark.parametrize("options", [{"order": 4}, {"order": 3, "steps": 2}])
def test_orders_that_cannot_be_are_refused(sampler, options):
    with pytest.raises(OptionError, match="order"):
        sampler(**options)
