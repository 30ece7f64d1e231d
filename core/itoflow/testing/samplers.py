r"""What every sampler is held to.

On Gaussian data a sampler starts from exact draws of p at t_max, so that what is wrong at the end is the sampler's own.
The deterministic flow is known in closed form, x_s = m_s + V_s^(1/2) V_t^(-1/2) (x_t - m_t), so a method of order p has
an error C h^p against it, and p is the slope of log error over log h.

The checks run on the kit's own processes, among those which the sampler accepts: regular, exploding, singular at both
ends, and (for samplers that need velocities only) one that is not declared Gaussian.

A sampler class may declare `order: ClassVar[int]`; then `check_order` holds it to that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor

from itoflow.errors import IncompatibleError, InputError, NumericalError, OptionError, UndefinedError
from itoflow.field import Conditions, Field
from itoflow.loop import Step
from itoflow.prediction import Prediction
from itoflow.process import GaussianProcess
from itoflow.sampler import Sampler
from itoflow.testing.assertions import (
    SIGMAS,
    check_options,
    expect,
    expect_close,
    expect_finite,
    expect_moments,
    expect_tensor,
    global_randomness_untouched,
    sample_moments,
)
from itoflow.testing.oracles import GaussianOracle, MixtureOracle
from itoflow.testing.problems import Preserving, UndeclaredOracle, exact_field, mixture, processes, seeded

STEPS = 200
"""Steps of the runs whose law is compared, where the sampler has a number of steps."""
DRAWS = 2000
BIAS = 0.1
"""What a method's own error may be at that many steps, in standard deviations and relative in covariances."""


class Watched(Field):
    """A field that counts its calls and keeps the conditions that it was given.

    Arguments:
        inner: the field.
        broken_below: gives NaN at times below this.
    """

    def __init__(self, inner: Field, broken_below: float = -1.0) -> None:
        super().__init__(inner.process, inner.data_std, inner.predicts_noise)
        self.inner, self.broken_below = inner, broken_below
        self.calls, self.conditions = 0, list[Conditions | None]()

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Prediction:
        """The inner prediction at x (B, *S), or NaN."""
        self.calls += 1
        self.conditions.append(cond)
        if float(torch.as_tensor(t).min()) < self.broken_below:
            x = x * math.nan
        return cast(Prediction, self.inner(x, t, cond))


def check_gaussian(sampler: Sampler) -> None:
    """Samples of correlated Gaussian data have its mean and covariance.

    4000 draws (64 where it draws no noise), 200 steps. The start has the exact moments of p at t_max, so a
    deterministic sampler has no error of chance. Allowance: 10 per cent for the method's error, and 5 standard errors
    for chance where it draws noise.
    """
    sampler = with_steps(sampler, STEPS)
    for field in _fields(sampler):
        short, few = with_steps(sampler, 5), _start(field, 4)
        noisy = not torch.equal(*(short(field, few, generator=seeded(seed)) for seed in (2, 3)))
        start = _start(field, 2 * DRAWS if noisy else 64)
        x = _standardised(start, *_oracle(field).moments(field.process.t_max))
        end = sampler(field, x, generator=seeded(2))
        mean, covariance = _oracle(field).moments()
        expect_moments(end, mean, covariance, _what(sampler, field), relative=BIAS, share=SIGMAS if noisy else 0.0)


def _standardised(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Draws x (N, D) moved so that their mean and covariance are exactly the given ones."""
    got_mean, got_covariance = sample_moments(x)
    whiten = torch.linalg.solve_triangular(torch.linalg.cholesky(got_covariance), (x - got_mean).T, upper=False)
    moved: Tensor = mean + (torch.linalg.cholesky(covariance) @ whiten).T
    return moved


def check_mixture(sampler: Sampler) -> None:
    """Samples of a mixture of three clusters have its mean and covariance, and the share of each cluster.

    2000 draws, 200 steps. Allowance: as for Gaussian data, and 0.02 more for shares.
    """
    sampler = with_steps(sampler, STEPS)
    for field in _fields(sampler):
        if not isinstance(field.process, GaussianProcess):
            continue
        oracle = mixture(field.process)
        x = sampler(oracle, oracle.sample(DRAWS, field.process.t_max, generator=seeded(1)), generator=seeded(2))
        mean, covariance = oracle.moments()
        what = _what(sampler, field).replace("Gaussian data", "a mixture")
        expect_moments(x, mean, covariance, what, relative=BIAS)
        nearest = torch.cdist(x, oracle.means).argmin(1)
        shares = torch.bincount(nearest, minlength=3) / len(x)
        exact = oracle.sample(100_000, generator=seeded(3))
        expected = torch.bincount(torch.cdist(exact, oracle.means).argmin(1), minlength=3) / len(exact)
        allowed = 0.02 + 5 * (expected * (1 - expected) / len(x)).sqrt()
        expect_close(shares, expected, allowed, f"The share of a cluster among {what}")


def check_order(sampler: Sampler) -> None:
    """A sampler that declares `order` reaches it: the fitted order is at least order - 0.3."""
    order = getattr(sampler, "order", None)
    if order is None:
        return
    fitted = fitted_order(sampler)
    expect(
        fitted >= order - 0.3,
        f"{type(sampler).__name__} declares order {order}; its error falls with order {fitted:.2f} on a Gaussian flow.",
    )


def fitted_order(sampler: Sampler, *, steps: tuple[int, ...] = (20, 40, 80, 160)) -> float:
    """Minus the slope of log error over log steps, against the closed-form flow, least squares over `steps`.

    On the regular process, a uniform grid, without the final denoising; errors at rounding level are left out.

    Raises:
        InputError: the sampler has no number of steps, or draws noise.
    """
    process = Preserving()
    oracle = cast(GaussianOracle, exact_field(process))
    options: dict[str, Any] = {"grid": "uniform", "denoise": False}
    sampler = sampler.replace(**{name: value for name, value in options.items() if name in type(sampler).model_fields})
    x = _start(oracle, 64)
    expected = oracle.flow(x, process.t_max, process.t_min)
    errors = []
    for count in steps:
        run = sampler.with_steps(count)
        got = run(oracle, x, generator=seeded(0))
        if not torch.equal(got, run(oracle, x, generator=seeded(1))):
            raise InputError(
                f"{type(sampler).__name__} draws noise; the order of a path is that of a deterministic sampler."
            )
        errors.append(float((got - expected).square().mean().sqrt()))
    points = [(math.log(n), math.log(e)) for n, e in zip(steps, errors, strict=True) if e > 1e-12]
    if len(points) < 2:
        raise InputError(f"{type(sampler).__name__} is exact to rounding on this problem: errors {errors}.")
    centre = [sum(values) / len(points) for values in zip(*points, strict=True)]
    covariance = sum((n - centre[0]) * (e - centre[1]) for n, e in points)
    return float(-covariance / sum((n - centre[0]) ** 2 for n, _ in points))


def check_randomness(sampler: Sampler) -> None:
    """One seed gives one result, drawn from the generator given; x is left alone, and dtype and shape are kept."""
    sampler, name = with_steps(sampler, 5), type(sampler).__name__
    for field in _fields(sampler):
        for dtype in (torch.float32, torch.float64):
            x = _start(field, 8).to(dtype)
            kept = x.clone()
            with global_randomness_untouched(name):
                first = sampler(field, x, generator=seeded(7))
            expect(torch.equal(x, kept), f"{name} changed its input x in place.")
            expect_tensor(first, name)
            expect(
                first.dtype == dtype and first.shape == x.shape,
                f"{name} returned {first.dtype} of shape {tuple(first.shape)} for x {dtype} of shape {tuple(x.shape)}.",
            )
            expect_finite(first, f"What {name} returned on {type(field.process).__name__} in {dtype}")
            expect(
                torch.equal(first, sampler(field, x, generator=seeded(7))), f"{name} gives two results for one seed."
            )


def check_batch_split(sampler: Sampler) -> None:
    """With one generator per sample, a sample is the same whatever batch it is drawn in, to 1e-9."""
    sampler, name = with_steps(sampler, 5), type(sampler).__name__
    for field in _fields(sampler):
        x = _start(field, 6)
        together = sampler(field, x, generator=[seeded(i) for i in range(6)])
        parts = [
            sampler(field, x[i:j], generator=[seeded(k) for k in range(i, j)]) for i, j in ((0, 2), (2, 3), (3, 6))
        ]
        expect_close(
            torch.cat(parts),
            together,
            1e-9 * (1 + together.abs()),
            f"A sample of {name} on {type(field.process).__name__} drawn in a smaller batch (one generator per sample)",
        )


def check_shape(sampler: Sampler) -> None:
    """Images are sampled as vectors of the same values are."""
    sampler, name = with_steps(sampler, 4), type(sampler).__name__
    for field in _fields(sampler):
        x = _start(field, 6)
        flat = sampler(field, x, generator=seeded(3))
        image = sampler(field, x.reshape(6, 1, 2, 1), generator=seeded(3))
        expect(image.shape == (6, 1, 2, 1), f"{name} returned shape {tuple(image.shape)} for x of shape (6, 1, 2, 1).")
        expect_close(
            image.flatten(1), flat, 1e-9 * (1 + flat.abs()), f"{name} on x of shape (6, 1, 2, 1), against (6, 2),"
        )


def check_callback(sampler: Sampler) -> None:
    """The callback sees every network call, in order, with the state, and a finite x0 where one is determined.

    The conditions reach every call too.
    """
    sampler, name = with_steps(sampler, 6), type(sampler).__name__
    for field in _fields(sampler):
        watched, seen = Watched(field), list[Step]()
        x = _start(field, 3)
        cond = {"class": torch.arange(3)}

        def record(step: Step, seen: list[Step] = seen, shape: torch.Size = x.shape, inner: Field = field) -> None:
            seen.append(step)
            expect(
                step.x.shape == shape, f"{name} gave its callback x of shape {tuple(step.x.shape)}, not {tuple(shape)}."
            )
            if isinstance(inner.process, GaussianProcess):
                with suppress(UndefinedError):
                    expect_finite(step.x0, f"x0 in the callback of {name} at t = {step.t:.4g}")

        end = sampler(watched, x, cond, generator=seeded(3), callback=record)
        expect(
            len(seen) == watched.calls,
            f"{name} called its callback {len(seen)} times for {watched.calls} network calls; call it after each.",
        )
        expect(
            [s.index for s in seen] == list(range(len(seen))), f"{name} numbers its steps {[s.index for s in seen]}."
        )
        expect(
            all(s.calls in (None, len(seen)) for s in seen),
            f"{name} announced {seen[0].calls} calls and made {len(seen)}; give None where the number is not known.",
        )
        expect(all(0 <= s.t <= 1 for s in seen), f"{name} reports times outside [0, 1] to its callback.")
        expect(torch.equal(seen[-1].x, end), f"The last state that {name} showed its callback is not what it returned.")
        expect(
            all(given is not None and torch.equal(given["class"], cond["class"]) for given in watched.conditions),
            f"{name} does not pass the conditions on to the field.",
        )


def check_single_step(sampler: Sampler) -> None:
    """steps = 1 runs and is finite."""
    for field in _fields(sampler):
        run = with_steps(sampler, 1)
        out = run(field, _start(field, 4), generator=seeded(0))
        expect_finite(out, f"{type(sampler).__name__} with one step on {type(field.process).__name__}")


def check_failure(sampler: Sampler) -> None:
    """A network that gives NaN is reported as a NumericalError that names the sampler, the step and the time."""
    sampler, name = with_steps(sampler, 6), type(sampler).__name__
    for field in _fields(sampler):
        middle = (field.process.t_min + field.process.t_max) / 2
        try:
            sampler(Watched(field, broken_below=middle), _start(field, 3), generator=seeded(0))
        except NumericalError as error:
            text = str(error)
            for needed in (name, "step", "t = "):
                expect(needed in text, f"The NumericalError of {name} does not say {needed!r}: {text}")
            continue
        raise AssertionError(f"{name} returned although the network gave NaN; raise NumericalError.")


def with_steps(sampler: Sampler, steps: int) -> Sampler:
    """The sampler with that many steps, or itself where it has no number of steps."""
    try:
        return sampler.with_steps(steps)
    except InputError:
        return sampler


def _fields(sampler: Sampler) -> Iterator[Field]:
    """Exact fields of Gaussian data on every process that the sampler accepts.

    Raises:
        AssertionError: it accepts none.
    """
    found = False
    for process in processes(sampler.requires):
        try:
            sampler.check(process)
        except (IncompatibleError, OptionError):
            continue
        found = True
        yield exact_field(process)
    expect(found, f"{type(sampler).__name__} accepts none of the processes that the kit knows exactly.")


def _oracle(field: Field) -> GaussianOracle | MixtureOracle:
    known = field.known if isinstance(field, UndeclaredOracle) else field
    assert isinstance(known, (GaussianOracle, MixtureOracle))
    return known


def _start(field: Field, n: int) -> Tensor:
    """n exact draws at t_max, float64."""
    return _oracle(field).sample(n, field.process.t_max, generator=seeded(1))


def _what(sampler: Sampler, field: Field) -> str:
    return f"samples of Gaussian data by {sampler!r} on {type(field.process).__name__}"


CHECKS = (
    check_options,
    check_randomness,
    check_batch_split,
    check_shape,
    check_callback,
    check_single_step,
    check_failure,
    check_gaussian,
    check_mixture,
    check_order,
)
