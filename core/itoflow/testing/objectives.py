r"""What every objective is held to: its minimiser is the exact field.

Let y* be the exact output for known data and y_theta = y* + sum_j theta_j phi_j(x, t) with functions phi_j. Then

    d/d theta_j E[loss(y_theta)] = 0 at theta = 0                                                  (1)

for every phi_j exactly when y* is a stationary point. The mean of (1) over independent batches is compared with its own
standard error, whatever the loss's scale or weighting. The same test at theta away from 0 must fail, or else the
objective does not see the error at all; so each run shows that it can fail.

A bias that is small beside the noise of the loss passes: with 48 batches of 512 examples, one of some 2 per cent of
the output is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from itoflow.backbone import DataSpec
from itoflow.errors import IncompatibleError, InputError, ItoflowError, UndefinedError
from itoflow.field import Conditions, Field, NetworkField
from itoflow.interpolant import InterpolantProcess
from itoflow.objective import Objective, PathObjective
from itoflow.parametrization import Parametrization
from itoflow.prediction import DynamicsPrediction, GaussianPrediction, InterpolantPrediction, Prediction
from itoflow.process import GaussianProcess, ProcessSpec, broadcast_time
from itoflow.testing.assertions import (
    check_options,
    expect,
    expect_close,
    expect_finite,
    expect_tensor,
    global_randomness_untouched,
)
from itoflow.testing.interpolants import InterpolantOracle, Joined, joined
from itoflow.testing.oracles import GaussianOracle, MixtureOracle
from itoflow.testing.problems import (
    Preserving,
    Undeclared,
    UndeclaredOracle,
    gaussian,
    mixture,
    processes,
    seeded,
    solvable,
)

BATCHES, EXAMPLES = 48, 512
Z_LIMIT = 7.0
"""Student's t with 47 degrees of freedom exceeds 7 by chance once in 10^8."""
_WRONG = 0.5


class PerturbedField(Field):
    """An exact field whose output is off by sum_j theta_j phi_j(x, t).

    The phi are 5 functions of the scaled input u = x / std(x) and t: two constants, u, t u and tanh(3 u).

    Arguments:
        exact: the oracle.
        parametrization: the meaning of the output.
        theta: (5,).
    """

    def __init__(self, exact: Field, parametrization: Parametrization, theta: Tensor) -> None:
        super().__init__(exact.process, exact.data_std)
        self.exact, self.parametrization, self.theta = exact, parametrization, theta
        self.seen: list[Conditions | None] = []

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Prediction:
        """The exact prediction at x (B, *S) with its output shifted."""
        self.seen.append(cond)
        exact, t = self.exact(x, t, cond), torch.as_tensor(t, dtype=torch.float64)
        if isinstance(exact, GaussianPrediction):
            k = exact.kernel
            a, b = self.parametrization.coefficients(k)
            u = x * (k.alpha.square() * self.data_std**2 + k.sigma.square()).rsqrt().to(x.dtype)
            return GaussianPrediction(x, exact.combine(a, b) + self._shift(u, t), k, a, b)
        if isinstance(exact, InterpolantPrediction):
            noise = None if exact.noise is None or not self.parametrization.score else exact.noise + self._shift(x, t)
            first = exact.output if noise is not None else exact.velocity
            return InterpolantPrediction(first + self._shift(x, t), noise, exact.kernel)
        what = "velocity" if self.parametrization.prediction == "velocity" else "score"
        given: Any = {what: getattr(exact, what) + self._shift(x, t)}
        return DynamicsPrediction(self.process, x, t, **given)

    def _shift(self, u: Tensor, t: Tensor) -> Tensor:
        first = torch.zeros_like(u).flatten(1)
        first[:, 0] = 1
        constant = first.view_as(u)
        time = broadcast_time(t, u.ndim).to(u.dtype)
        basis = (constant, 1 - constant, u, time * u, torch.tanh(3 * u))
        return torch.stack([weight * phi for weight, phi in zip(self.theta.to(u.dtype), basis, strict=True)]).sum(0)


def check_minimiser(objective: Objective) -> None:
    """Equation (1): the gradient vanishes at the exact field, and clearly does not at a wrong one.

    24576 examples of a Gaussian mixture, in batches of 512; |mean| / standard error at most 7, false-alarm rate 1e-7
    over all functions and processes.
    """
    for exact, parametrization in _fields(objective):
        at_exact = _scores(objective, exact, parametrization, torch.zeros(5))
        where = f"{type(objective).__name__} on {type(exact.process).__name__}"
        worst = int(at_exact.abs().argmax())
        expect(
            float(at_exact.abs().max()) <= Z_LIMIT,
            f"{where}: the exact field is no minimum. The gradient along test function {worst + 1} of 5 is "
            f"{float(at_exact[worst]):.3g} standard errors from 0; chance explains {Z_LIMIT:g}. The target or its "
            "weight is wrong by a term that does not average out.",
        )
        wrong = torch.tensor([0.0, 0.0, _WRONG, 0.0, 0.0])
        at_wrong = _scores(objective, exact, parametrization, wrong)
        expect(
            float(at_wrong.abs().max()) > Z_LIMIT,
            f"{where} does not see an output that is wrong by {_WRONG} u: the gradient is within "
            f"{float(at_wrong.abs().max()):.3g} standard errors of 0. Its weight vanishes, or the loss does not "
            "depend on the field.",
        )


def _scores(objective: Objective, exact: Field, parametrization: Parametrization, theta: Tensor) -> Tensor:
    """Mean over standard error of the loss's gradient in theta: (5,)."""
    gradients = []
    for batch in range(BATCHES):
        weight = theta.to(torch.float64).clone().requires_grad_()
        field = PerturbedField(exact, parametrization, weight)
        loss = objective(field, _data(exact, batch), generator=seeded(1000 + batch), **_far_end(exact, batch))
        expect(loss.requires_grad, f"The loss of {type(objective).__name__} does not depend on the field's output.")
        gradients.append(torch.autograd.grad(loss.mean(), weight)[0])
    stacked = torch.stack(gradients)
    expect_finite(stacked, f"The gradient of {type(objective).__name__} in the field's output")
    error: Tensor = stacked.std(0) / BATCHES**0.5
    return stacked.mean(0) / error.clamp(min=1e-300)


def check_loss(objective: Objective) -> None:
    """The loss is (B,), finite, of x0's dtype, leaves x0 alone, and depends on the given generator and nothing else."""
    name = type(objective).__name__
    for exact, parametrization in _fields(objective):
        for dtype in (torch.float32, torch.float64):
            field, x0 = PerturbedField(exact, parametrization, torch.full((5,), 0.1)), _data(exact, 0)[:16].to(dtype)
            kept, far = x0.clone(), {k: v[:16].to(dtype) for k, v in _far_end(exact, 0).items()}
            with global_randomness_untouched(name):
                loss = objective(field, x0, generator=seeded(5), **far)
            expect(torch.equal(x0, kept), f"{name} changed x0 in place.")
            expect_tensor(loss, name)
            expect(
                loss.shape == (16,),
                f"{name} returned a loss of shape {tuple(loss.shape)} for 16 examples; it is one each.",
            )
            expect(loss.dtype == dtype, f"{name} returned a {loss.dtype} loss for {dtype} data.")
            expect_finite(loss, f"The loss of {name} on {type(exact.process).__name__}")
            again = objective(field, x0, generator=seeded(5), **far)
            expect(torch.equal(loss, again), f"{name} gives two losses for one seed; draw from the generator given.")
            other = objective(field, x0, generator=seeded(6), **far)
            expect(not torch.equal(loss, other), f"{name} ignores its generator: two seeds give one loss.")


def check_conditions(objective: Objective) -> None:
    """The conditions reach the field, one per row of what it is called with, in the order of x or repeated whole."""
    name = type(objective).__name__
    for exact, parametrization in _fields(objective):
        field, label = PerturbedField(exact, parametrization, torch.zeros(5)), torch.arange(8)
        far = {k: v[:8] for k, v in _far_end(exact, 0).items()}
        objective(field, _data(exact, 0)[:8], {"class": label}, generator=seeded(5), **far)
        for cond in field.seen:
            given = None if cond is None else cond.get("class")
            expect(
                given is not None and torch.equal(given, label.repeat(len(given) // len(label))),
                f"{name} called the field with class {given} for examples of class {label.tolist()}; pass `cond` on, "
                "rows in the order of x.",
            )


def check_training(objective: Objective) -> None:
    """As `compose` builds it: a small network in the objective's parametrization gets finite gradients everywhere."""
    name = type(objective).__name__
    for exact, parametrization in _fields(objective):
        two_heads = isinstance(exact.process, InterpolantProcess) and parametrization.score
        net = _Net(4 if two_heads else 2).to(torch.float64)
        field = NetworkField(net, exact.process, parametrization)
        objective(field, _data(exact, 0)[:64], generator=seeded(5), **_far_end(exact, 0)).mean().backward()
        for weight in net.parameters():
            expect(weight.grad is not None, f"{name} leaves a weight of the network without a gradient.")
            assert weight.grad is not None
            expect_finite(weight.grad, f"The gradient of {name} in a network on {type(exact.process).__name__}")


def check_prediction_independence(objective: Objective) -> None:
    """The loss of one wrong field at the same times and noise is the same in every prediction type, to 1e-8.

    A weighting is defined on the error of x0, so that `prediction` chooses what a network outputs and nothing else. For
    objectives with an option `prediction`.
    """
    names = [
        name for name in ("x0", "eps", "v", "velocity", "score", "edm") if "prediction" in type(objective).model_fields
    ]
    for exact, _ in _fields(objective):
        if isinstance(exact.process, InterpolantProcess):
            continue  # which has one prediction, the velocity
        losses: dict[str, Tensor] = {}
        for name in names:
            try:
                variant = cast(Any, objective).replace(prediction=name)
            except ItoflowError:
                continue
            parametrization = variant.parametrization(exact.process, _spec(exact))
            if solvable(exact.process, parametrization) == exact.process:
                field = Rewritten(_shrunk(exact), parametrization)
                losses[name] = variant(field, _data(exact, 0)[:256], generator=seeded(5))
        for name, loss in losses.items():
            first, reference = next(iter(losses.items()))
            expect_close(
                loss,
                reference,
                1e-8 * reference.abs() + 1e-8 * reference.abs().mean(),
                f"The loss of {type(objective).__name__} with prediction {name!r} on {type(exact.process).__name__}, "
                f"at the times and noise of prediction {first!r},",
            )


class Rewritten(Field):
    """A Gaussian field with its output written in a given parametrization.

    Arguments:
        inner: the field.
        parametrization: the new meaning of its output.
    """

    def __init__(self, inner: Field, parametrization: Parametrization) -> None:
        super().__init__(inner.process, inner.data_std)
        self.inner, self.parametrization = inner, parametrization

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Prediction:
        """The inner prediction at x (B, *S), in other words."""
        known = self.inner(x, t, cond)
        if not isinstance(known, GaussianPrediction):
            return cast(Prediction, known)
        a, b = self.parametrization.coefficients(known.kernel)
        return GaussianPrediction(x, known.combine(a, b), known.kernel, a, b)


class _Net(nn.Module):
    """tanh(W [x, t] + b) and a second matrix."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(size + 1, 8), nn.Linear(8, size)

    def forward(self, x: Tensor, t: Tensor, cond: Conditions) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(torch.cat([x, t[:, None]], dim=1))))
        return y


def _fields(objective: Objective) -> Iterator[tuple[Field, Parametrization]]:
    """Exact fields on processes that the objective accepts, each with the objective's parametrization.

    Raises:
        AssertionError: it accepts none of them.
    """
    found = False
    known = processes(objective.requires)
    for process in [*known, Joined()] if isinstance(objective, PathObjective) else known:
        data = DataSpec(shape=(2,), std=mixture(Preserving()).data_std)
        try:
            parametrization = objective.parametrization(process, data)
        except (IncompatibleError, InputError, UndefinedError):
            continue
        expect(
            isinstance(parametrization, Parametrization),
            f"{type(objective).__name__}.parametrization gave {parametrization!r}, no itoflow.Parametrization.",
        )
        fitted = solvable(process, parametrization)
        if fitted is not None:
            found = True
            yield _exact(fitted), parametrization
    expect(found, f"{type(objective).__name__} accepts none of the processes that the kit knows exactly.")


def _exact(process: ProcessSpec) -> Field:
    if isinstance(process, Undeclared):
        return UndeclaredOracle(gaussian(Preserving()))
    if isinstance(process, Joined):
        return joined()
    if not isinstance(process, GaussianProcess):
        raise AssertionError(f"No exact field is known for {type(process).__name__}: test this objective by hand.")
    return mixture(process)


def _shrunk(exact: Field) -> Field:
    """An exact field for other data: wrong, smooth, and written in no parametrization."""
    if not isinstance(exact.process, GaussianProcess):
        return exact
    wrong = GaussianOracle(exact.process, torch.tensor([0.3, 0.2], dtype=torch.float64), 0.4)
    wrong.data_std = exact.data_std
    return wrong


def _spec(exact: Field) -> DataSpec:
    return DataSpec(shape=(2,), std=exact.data_std)


def _data(exact: Field, batch: int) -> Tensor:
    source = exact.known if isinstance(exact, UndeclaredOracle) else exact
    assert isinstance(source, (GaussianOracle, MixtureOracle, InterpolantOracle))
    return source.sample(EXAMPLES, generator=seeded(batch))


def _far_end(exact: Field, batch: int) -> dict[str, Any]:
    """The argument x1 where the process joins two data sets."""
    if not isinstance(exact, InterpolantOracle):
        return {}
    return {"x1": exact.ends(EXAMPLES, generator=seeded(5000 + batch))[1]}


CHECKS = (
    check_options,
    check_loss,
    check_conditions,
    check_minimiser,
    check_training,
    check_prediction_independence,
)
