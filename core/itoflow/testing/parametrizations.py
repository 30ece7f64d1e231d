r"""What every parametrization is held to: y = a(t) x0 + b(t) eps and its solution.

Together with x = alpha x0 + sigma eps, the output determines (x0, eps) wherever D = alpha b - sigma a is not 0. Each
check takes a `Parametrization` and runs it on three processes: regular (VP-like), exploding (VE-like), and singular at
both ends (a straight line). Where `compose` would lower t_max for the prediction, so do these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from itoflow.parametrization import Parametrization, PredictionName, solve
from itoflow.prediction import GaussianPrediction
from itoflow.process import GaussianProcess, Kernel
from itoflow.testing.assertions import expect, expect_close, expect_finite
from itoflow.testing.problems import Exploding, Preserving, Straight, seeded, solvable
from itoflow.testing.processes import times


def check_round_trip(parametrization: Parametrization) -> None:
    """(x0, eps) -> (x, y) -> (x0, eps), and on through every other prediction type and back to y."""
    for process, k in _kernels(parametrization):
        x0, eps = _draws(k)
        x, a, b = k.alpha * x0 + k.sigma * eps, *parametrization.coefficients(k)
        y = a * x0 + b * eps
        prediction, loss = GaussianPrediction(x, y, k, a, b), _amplification(parametrization, k)
        name = f"Prediction {parametrization.prediction!r} on {type(process).__name__}:"
        expect_close(prediction.x0, x0, loss * (1 + k.sigma), f"{name} x0 from (x, y)")
        expect_close(prediction.eps, eps, loss * (1 + k.alpha), f"{name} eps from (x, y)")
        for other in get_args(PredictionName):
            second = parametrization.replace(prediction=other)
            if not isinstance(solvable(process, second), GaussianProcess):
                continue
            c, d = second.coefficients(k)
            usable = (_sine(second, k) > 1e-6) & torch.isfinite(c) & torch.isfinite(d)
            z = prediction.combine(c, d)
            back = GaussianPrediction(x, z, k, c, d).combine(a, b)
            allowed = (loss + _amplification(second, k)) * (1 + a.abs() + b.abs()) * (1 + k.alpha + k.sigma)
            keep = usable.expand(y.shape)
            expect_close(
                torch.where(keep, back, 0.0),
                torch.where(keep, y, 0.0),
                allowed,
                f"{name} y by way of {other!r} and back",
            )


def check_solution(parametrization: Parametrization) -> None:
    """The closed-form solution is that of the 2 x 2 linear system (alpha, sigma; a, b)."""
    for process, k in _kernels(parametrization):
        a, b = parametrization.coefficients(k)
        matrix = torch.stack([torch.stack([k.alpha, k.sigma], -1), torch.stack([a, b], -1)], -2)
        for c, d in ((1.0, 0.0), (0.0, 1.0), (-0.7, 0.4)):
            wanted = torch.tensor([c, d], dtype=torch.float64).expand(*matrix.shape[:-2], 2)
            expected = torch.linalg.solve(matrix.mT, wanted)
            m_x, m_y = solve(k, a, b, c * torch.ones_like(a), d * torch.ones_like(a))
            allowed = 1e-9 * expected.abs().amax(-1) / _sine(parametrization, k)
            name = f"of prediction {parametrization.prediction!r} on {type(process).__name__} for {c} x0 + {d} eps"
            expect_close(m_x, expected[..., 0], allowed, f"m_x {name}")
            expect_close(m_y, expected[..., 1], allowed, f"m_y {name}")


def check_input_scale(parametrization: Parametrization) -> None:
    """The network's input has unit variance at all times for data of `data_std`, or is x itself."""
    for process, k in _kernels(parametrization):
        scale = parametrization.input_scale(k)
        expect_finite(scale, f"input_scale on {type(process).__name__}")
        variance = k.alpha.square() * parametrization.data_std**2 + k.sigma.square()
        expected = variance.rsqrt() if parametrization.scale_input else torch.ones_like(variance)
        expect_close(scale, expected, 1e-12 * expected, f"input_scale on {type(process).__name__}")


def check_no_signal(parametrization: Parametrization) -> None:
    """Where alpha = 0, x0 and eps are right if the output holds any x0, and `compose` lowers t_max if it does not."""
    k = Straight().kernel(torch.ones(1, dtype=torch.float64), 2)
    a, b = parametrization.coefficients(k)
    fitted = solvable(Straight(), parametrization)
    expect(fitted is not None, f"compose refuses prediction {parametrization.prediction!r} on a straight path.")
    assert fitted is not None
    if not bool(a != 0):
        expect(
            fitted.t_max < 1, f"Prediction {parametrization.prediction!r} holds no x0 at alpha = 0, yet t_max stays 1."
        )
        return
    expect(fitted.t_max == 1, f"Prediction {parametrization.prediction!r} holds x0 at alpha = 0, yet t_max is lowered.")
    x0, eps = _draws(k)
    prediction = GaussianPrediction(k.alpha * x0 + k.sigma * eps, a * x0 + b * eps, k, a, b)
    expect_close(prediction.x0, x0, 1e-12, f"x0 of prediction {parametrization.prediction!r} at alpha = 0")
    expect_close(prediction.eps, eps, 1e-12, f"eps of prediction {parametrization.prediction!r} at alpha = 0")


def _kernels(parametrization: Parametrization) -> Iterator[tuple[GaussianProcess, Kernel]]:
    """Each process with its kernel at all times where the prediction is finite and solvable."""
    for process in (Preserving(), Exploding(), Straight()):
        fitted = solvable(process, parametrization)
        if isinstance(fitted, GaussianProcess):
            t = times(fitted)
            yield fitted, fitted.kernel(t[fitted.sigma(t) > 0], 2)


def _draws(k: Kernel) -> tuple[Tensor, Tensor]:
    shape, generator = (k.alpha.shape[0], 4), seeded(0)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))  # type: ignore[return-value]


def _sine(parametrization: Parametrization, k: Kernel) -> Tensor:
    a, b = parametrization.coefficients(k)
    return parametrization.determinant(k).abs() / (torch.hypot(a, b) * torch.hypot(k.alpha, k.sigma))


def _amplification(parametrization: Parametrization, k: Kernel) -> Tensor:
    """Rounding of x and y as the solve amplifies it."""
    norm = torch.hypot(k.alpha, k.sigma)
    return 1e-14 * (1 + norm) / (_sine(parametrization, k) * norm) * (1 + 1 / norm) + 1e-12


CHECKS = (check_round_trip, check_solution, check_input_scale, check_no_signal)
