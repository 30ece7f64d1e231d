"""Every detector of the kit fires on a component that is broken in one way, and says what is wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import nn

from itoflow import (
    Backbone,
    InterpolantProcess,
    NumericalError,
    Objective,
    Parametrization,
    ProcessSpec,
    ReverseSDE,
    Row,
    Spec,
    Table,
    TableSampler,
)
from itoflow.process import Kernel
from itoflow.testing import backbones, interpolants, marginals, objectives, parametrizations, processes, samplers
from itoflow.testing.interpolants import Joined
from itoflow.testing.problems import Exploding, Preserving, Undeclared


def variant(base, **members):
    """A subclass of `base` with some members replaced, instantiated."""
    constants = {name: ClassVar for name, value in members.items() if not callable(value)}
    return type("Broken", (base,), {"__module__": __name__, "__annotations__": constants, **members})()


def reversed_time(t):
    return torch.sin(1.56 * t)


# -- processes ------------------------------------------------------------------------------------------------------


def blown(self, t):
    """alpha = 0 at t_max, nearly: x0 is then a small difference of large numbers."""
    return torch.cos(torch.pi / 2 * t)


PROCESSES = [
    ("check_shapes", variant(Preserving, alpha=lambda self, t: 0.5), "alpha"),
    ("check_shapes", variant(Exploding, alpha=lambda self, t: torch.ones((), dtype=t.dtype)), "shape"),
    ("check_shapes", variant(Preserving, diffusion=lambda self, t: t.float()), "float32"),
    ("check_shapes", variant(Preserving, network_time=lambda self, t: 0.3), "network_time"),
    ("check_shapes", variant(Undeclared, drift=lambda self, x, t: -x.double()), "drift"),
    ("check_network_time", variant(Preserving, network_time=lambda self, t: 1000 * t), r"\[0, 1\]"),
    ("check_network_time", variant(Preserving, network_time=lambda self, t: 1 - t), "does not increase"),
    ("check_kernel", variant(Preserving, sigma=lambda self, t: -torch.sin(1.56 * t)), "must be >= 0"),
    ("check_kernel", variant(Preserving, d_sigma=lambda self, t: 1 / (1 - t)), "must be finite"),
    ("check_kernel", variant(Preserving, sigma=lambda self, t: (t - 0.5).clamp(min=0)), "more than one time"),
    ("check_derivatives", variant(Preserving, d_alpha=lambda self, t: torch.sin(1.56 * t)), "d_alpha"),
    ("check_derivatives", variant(Preserving, d_sigma=lambda self, t: 1.5601 * torch.cos(1.56 * t)), "d_sigma"),
    ("check_sde", variant(Preserving, diffusion=lambda self, t: 2**0.5 * Preserving().diffusion(t)), "diffusion"),
    ("check_sde", variant(Preserving, drift=lambda self, x, t: 0.5 * Preserving().drift(x, t)), "drift"),
    ("check_sde", variant(Undeclared, diffusion=lambda self, t: -Preserving().diffusion(t)), "negative"),
    ("check_log_snr", variant(Exploding, sigma=lambda self, t: 0.1 + t * (1.2 - t)), "does not fall"),
    ("check_log_snr", variant(Preserving, log_snr_inverse=lambda self, v: torch.sigmoid(-v)), "log_snr_inverse"),
    (
        "check_posterior",
        variant(
            Preserving,
            d_sigma=lambda self, t: 1.2 * torch.cos(1.56 * t),
            diffusion=lambda self, t: Preserving().diffusion(t),
        ),
        "velocity",
    ),
    ("check_sampling", variant(Exploding, prior_std=lambda self: 1.0), "from its prior"),
    ("check_sampling", variant(Preserving, d_alpha=lambda self, t: 0 * t), "Euler steps"),
    ("check_forward", variant(Preserving, diffusion=lambda self, t: 1.3 * Preserving().diffusion(t)), "forward SDE"),
    ("check_forward", variant(Undeclared, drift=lambda self, x, t: 0 * x), "perturb"),
    (
        "check_perturb",
        variant(Preserving, perturb=lambda self, x0, t, generator=None: Preserving().perturb(x0, t)),
        "default generator",
    ),
    (
        "check_perturb",
        variant(
            Exploding, perturb=lambda self, x0, t, generator=None: Preserving().perturb(x0, t, generator=generator)
        ),
        "x of Broken.perturb",
    ),
    (
        "check_prior",
        variant(Preserving, prior=lambda self, shape, *, like, generator=None: torch.randn(shape)),
        "default",
    ),
    ("check_prior", variant(Preserving, prior_log_prob=lambda self, x: -x.square().flatten(1).sum(1)), "integrates"),
    (
        "check_prior",
        variant(
            Undeclared,
            prior=lambda self, shape, *, like, generator=None: (
                1.2 * Preserving().prior(shape, like=like, generator=generator)
            ),
        ),
        "do not follow",
    ),
    ("check_prior_matches", Preserving(t_max=0.7), "nats per value"),
    ("check_prior_matches", variant(Exploding, prior_std=lambda self: 5.0), "nats per value"),
]


@pytest.mark.parametrize(("check", "broken", "says"), PROCESSES)
def test_process_detector_fires(check, broken, says):
    with pytest.raises(AssertionError, match=says):
        getattr(processes, check)(broken)


def test_every_process_check_has_a_case_that_fires():
    assert {check for check, _, _ in PROCESSES} == {c.__name__ for c in processes.CHECKS} - {"check_options"}


def half_gamma(self, t):
    return Joined().gamma(t) / 2


TWO_ENDED = [
    ("check_ends", variant(Joined, alpha=lambda self, t: 1 - 0.9 * t), "x_0 and x_1 are the ends"),
    ("check_ends", variant(Joined, gamma=lambda self, t: -Joined().gamma(t)), "negative"),
    ("check_ends", variant(Joined, beta=lambda self, t: 0.5), "float64 tensor"),
    ("check_ends", variant(Joined, d_gamma=lambda self, t: 1 / t), "must be finite"),
    ("check_end_derivatives", variant(Joined, d_gamma=half_gamma), "d_gamma"),
    ("check_path", variant(Joined, path_velocity=lambda self, s: s.x1 - s.x0), "path_velocity"),
    ("check_path", variant(Joined, drift=lambda self, x, t: 0 * x), "undefined"),
    (
        "check_path",
        variant(
            Joined,
            path=lambda self, x0, x1, t, *, generator=None, z=None: InterpolantProcess.path(
                self, x0, x1, t, z=torch.zeros_like(x0) if z is None else z
            ),
        ),
        "covariance",
    ),
]


@pytest.mark.parametrize(("check", "broken", "says"), TWO_ENDED)
def test_detector_of_processes_between_two_data_sets_fires(check, broken, says):
    with pytest.raises(AssertionError, match=says):
        getattr(interpolants, check)(broken)


def test_every_check_of_processes_between_two_data_sets_has_a_case_that_fires():
    assert {check for check, _, _ in TWO_ENDED} == {c.__name__ for c in interpolants.CHECKS}


@pytest.mark.parametrize(
    "broken",
    [
        variant(Preserving, d_sigma=lambda self, t: 0.5 * Preserving().d_sigma(t)),
        variant(Joined, d_beta=lambda self, t: 0.5 * torch.ones_like(t)),
    ],
    ids=["Gaussian", "two data sets"],
)
def test_marginals_detector_fires(broken):
    with pytest.raises(AssertionError, match="differs from p_t"):
        marginals.check_marginals(broken)


def test_marginals_detector_fires_on_a_wrong_reverse_sde(monkeypatch):
    """The strength counted twice: the ODE passes, the SDEs do not."""

    def drift(self, x, t):
        prediction = self.field(x, t, self.cond)
        return prediction.velocity - self.eta(t).square() * prediction.score

    monkeypatch.setattr(ReverseSDE, "drift", drift)
    with pytest.raises(AssertionError, match=r"strength (0\.5|1) g"):
        marginals.check_marginals(Preserving())


class Lossy(Spec):
    """An option that JSON cannot give back."""

    model_config: ClassVar = {"arbitrary_types_allowed": True}
    size: object = 3 + 4j


def test_options_detector_fires():
    with pytest.raises(AssertionError, match="not equal"):
        processes.check_options(Lossy())


# -- parametrizations -----------------------------------------------------------------------------------------------


class Shifted(Parametrization):
    """Claims to be one pair and solves another where noise dominates."""

    def coefficients(self, k: Kernel):
        a, b = super().coefficients(k)
        return (a * torch.nan, b) if self.prediction == "v" else (a, b)

    def input_scale(self, k: Kernel):
        return (k.sigma.square() + k.alpha * self.data_std**2).rsqrt()


@pytest.mark.parametrize("check", ["check_round_trip", "check_solution", "check_no_signal"])
def test_parametrization_detector_fires_on_coefficients_that_are_not_finite(check):
    with pytest.raises((AssertionError, torch.linalg.LinAlgError)):
        getattr(parametrizations, check)(Shifted(prediction="v"))


def test_parametrization_detector_fires_on_the_input_scale():
    with pytest.raises(AssertionError, match="input_scale"):
        parametrizations.check_input_scale(Shifted(prediction="x0"))


# -- objectives -----------------------------------------------------------------------------------------------------


class Regress(Objective):
    """Denoising in x0, right as it stands; each subclass breaks one thing."""

    shrink: ClassVar[float] = 1.0
    prediction: str = "x0"

    def parametrization(self, process, data):
        return Parametrization(prediction=self.prediction, data_std=data.std)

    def __call__(self, field, x0, cond=None, *, generator=None):
        t = self.times(field, x0, generator)
        sample = field.process.perturb(x0, t, generator=generator)
        prediction = field(sample.x, t, self.condition(cond))
        estimate = prediction.x0 if sample.eps is not None else prediction.score
        target = self.shrink * x0 if sample.eps is not None else self.score(sample)
        return self.reduce((estimate - target).square().flatten(1).mean(1), prediction)

    def times(self, field, x0, generator):
        unit = torch.rand(len(x0), generator=generator, dtype=torch.float64)
        return field.process.t_min + (field.process.t_max - field.process.t_min) * unit.clamp(min=1e-3)

    def score(self, sample):
        k = Preserving().kernel(sample.t, sample.x.ndim)
        return (-(sample.x - k.alpha * sample.x0) / k.sigma**2).to(sample.x.dtype)

    def condition(self, cond):
        return cond

    def reduce(self, loss, prediction):
        return loss


OBJECTIVES = [
    ("check_minimiser", variant(Regress, shrink=0.9), "no minimum"),
    ("check_minimiser", variant(Regress, reduce=lambda self, loss, p: 0 * loss), "does not see"),
    ("check_minimiser", variant(Regress, reduce=lambda self, loss, p: loss.detach()), "does not depend"),
    ("check_loss", variant(Regress, reduce=lambda self, loss, p: loss.mean()), "one each"),
    ("check_loss", variant(Regress, reduce=lambda self, loss, p: None), "returned a NoneType"),
    ("check_loss", variant(Regress, parametrization=lambda self, process, data: "v"), "no itoflow.Parametrization"),
    ("check_loss", variant(Regress, reduce=lambda self, loss, p: loss.double()), "float64 loss"),
    (
        "check_loss",
        variant(Regress, times=lambda self, field, x0, generator: torch.rand(len(x0), dtype=torch.float64)),
        "default generator",
    ),
    ("check_loss", variant(Regress, reduce=lambda self, loss, p: 0 * loss), "ignores its generator"),
    ("check_conditions", variant(Regress, condition=lambda self, cond: None), "pass `cond` on"),
    (
        "check_conditions",
        variant(Regress, condition=lambda self, cond: {name: value.flip(0) for name, value in cond.items()}),
        "rows in the order of x",
    ),
    ("check_training", variant(Regress, reduce=lambda self, loss, p: (loss - loss).sqrt()), "gradient"),
    (
        "check_prediction_independence",
        variant(Regress, reduce=lambda self, loss, p: loss * (1 + p.a.flatten().abs()) if hasattr(p, "a") else loss),
        "with prediction",
    ),
]


@pytest.mark.parametrize("check", [c for c in objectives.CHECKS if c.__name__ != "check_options"])
def test_objective_that_is_right_passes(check):
    check(Regress())


@pytest.mark.parametrize(("check", "broken", "says"), OBJECTIVES)
def test_objective_detector_fires(check, broken, says):
    with pytest.raises(AssertionError, match=says):
        getattr(objectives, check)(broken)


def test_every_objective_check_has_a_case_that_fires():
    assert {check for check, _, _ in OBJECTIVES} == {c.__name__ for c in objectives.CHECKS} - {"check_options"}


# -- samplers -------------------------------------------------------------------------------------------------------


class Walk(TableSampler):
    """Euler, right as it stands."""

    order: ClassVar[int] = 1

    def table(self, process: ProcessSpec) -> Table:
        times, ending = self.times(process)
        return Table((*(Row(t, b=(s - t,)) for t, s in pairwise(times)), *ending))


def run(self, field, x, cond=None, *, generator=None, callback=None):
    return Walk.__call__(self, field, x, cond, generator=generator, callback=callback)


def changed(change):
    """Euler with its arguments or its result changed."""

    def call(self, field, x, cond=None, *, generator=None, callback=None):
        return change(self, field, x, cond, generator, callback)

    return variant(Walk, __call__=call)


def half_noise(self, process):
    """Euler-Maruyama with the drift of the reverse SDE but sqrt(2) less noise."""
    times, ending = self.times(process)
    rows = []
    for t, s in pairwise(times):
        g = float(process.diffusion(torch.tensor(t, dtype=torch.float64)))
        g = min(g, 3.0)
        rows.append(Row(t, b=(s - t,), c=g * ((t - s) / 2) ** 0.5, eta=g))
    return Table((*rows, *ending))


def in_place(self, field, x, cond, generator, callback):
    x *= 1.0 + 1e-3
    return run(self, field, x, cond, generator=generator, callback=callback)


def swallow(self, field, x, cond, generator, callback):
    try:
        return run(self, field, x, cond, generator=generator, callback=callback)
    except NumericalError:
        return torch.zeros_like(x)


SAMPLERS = [
    ("check_gaussian", variant(Walk, table=half_noise), "covariance"),
    ("check_gaussian", changed(lambda s, f, x, c, g, b: run(s, f, x) + 0.1), "mean"),
    ("check_mixture", changed(lambda s, f, x, c, g, b: 0.9 * run(s, f, x.abs())), "mixture"),
    ("check_order", variant(Walk, order=2), "declares order 2"),
    ("check_randomness", changed(in_place), "in place"),
    ("check_randomness", changed(lambda s, f, x, c, g, b: run(s, f, x + torch.randn_like(x))), "default generator"),
    ("check_randomness", changed(lambda s, f, x, c, g, b: run(s, f, x.double())), "float64"),
    ("check_randomness", changed(lambda s, f, x, c, g, b: x.numpy()), "returned a ndarray"),
    ("check_batch_split", changed(lambda s, f, x, c, g, b: run(s, f, x - x.mean(0))), "smaller batch"),
    ("check_shape", changed(lambda s, f, x, c, g, b: run(s, f, x * x.shape[-1])), "of shape"),
    ("check_callback", changed(lambda s, f, x, c, g, b: run(s, f, x, c)), "called its callback 0 times"),
    ("check_callback", changed(lambda s, f, x, c, g, b: run(s, f, x, callback=b)), "conditions"),
    ("check_callback", changed(lambda s, f, x, c, g, b: 1.01 * run(s, f, x, c, callback=b)), "not what it returned"),
    (
        "check_single_step",
        changed(lambda s, f, x, c, g, b: run(s, f, x) / (s.steps - 1) if s.steps > 1 else x * torch.nan),
        "one step",
    ),
    ("check_failure", changed(swallow), "returned although"),
]


@pytest.mark.parametrize("check", [c for c in samplers.CHECKS if c.__name__ != "check_options"])
def test_sampler_that_is_right_passes(check):
    check(Walk())


@pytest.mark.parametrize(("check", "broken", "says"), SAMPLERS)
def test_sampler_detector_fires(check, broken, says):
    with pytest.raises(AssertionError, match=says):
        getattr(samplers, check)(broken)


def test_every_sampler_check_has_a_case_that_fires():
    assert {check for check, _, _ in SAMPLERS} == {c.__name__ for c in samplers.CHECKS} - {"check_options"}


def test_sampler_that_fits_no_process_is_not_passed_silently():
    class Nowhere(ProcessSpec):
        """Nobody derives from this."""

    with pytest.raises(AssertionError, match="no installed process"):
        samplers.check_single_step(variant(Walk, requires=Nowhere))


# -- backbones ------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """y = tanh(A x) + all conditions, right as it stands."""

    def __init__(self, data):
        super().__init__()
        size = torch.Size(data.shape).numel()
        self.inner, self.time = nn.Linear(size, size), nn.Linear(1, size)
        self.label = nn.Embedding(data.classes, size) if data.classes else None
        self.vector = nn.Linear(data.vector, size) if data.vector else None

    def forward(self, x, t, cond):
        y = torch.tanh(self.inner(x.flatten(1))) + self.time(t[:, None])
        if self.label is not None:
            y = y + self.label(cond["class"]) + self.vector(cond["vector"])
        return y.view_as(x)


class Dense(backbones.Backbone):
    """Builds `Net`."""

    def build(self, data):
        return Net(data)


def net(**members):
    """A backbone whose network has some members replaced."""
    module = type("Changed", (Net,), members)
    return variant(Dense, build=lambda self, data: module(data))


class Hidden(Net):
    def __init__(self, data):
        super().__init__(data)
        self.secret = float(torch.rand(()))

    def forward(self, x, t, cond):
        return super().forward(x, t, cond) * self.secret


class Idle(Net):
    def __init__(self, data):
        super().__init__(data)
        self.unused = nn.Linear(2, 2)


def broken_graph(self, x, t, cond):
    torch._dynamo.graph_break()
    return Net.forward(self, x, t, cond)


def changed_by_compilation(self, x, t, cond):
    return Net.forward(self, x, t, cond) + torch.compiler.is_compiling()


def infinite_slope(h):
    """Zero, with a slope that is infinite where autocast makes bfloat16 of h."""
    return 0 * (h - h).sum().abs().sqrt() if h.dtype == torch.bfloat16 else 0


class Once(torch.autograd.Function):
    """x^2, differentiable once and in reverse mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, y):
        return 2 * ctx.saved_tensors[0] * y


class Flat(torch.autograd.Function):
    """x^3 whose backward pass forgets that it depends on x."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        (x,) = inputs
        ctx.save_for_backward(x.detach().clone())
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx, y):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * y

    @staticmethod
    def jvp(ctx, v):
        return 3 * ctx.saved_tensors[0] ** 2 * v


BACKBONES = [
    ("check_output", net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond)[:, :1]), "shape"),
    ("check_output", net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond).float()), "float32"),
    ("check_output", net(forward=lambda self, x, t, cond: (x, {})), "returned a tuple"),
    ("check_output", variant(Backbone, build=lambda self, data: None), "Broken.build gave None"),
    ("check_independence", net(forward=lambda self, x, t, cond: Net.forward(self, x - x.mean(0), t, cond)), "alone"),
    (
        "check_independence",
        net(forward=lambda self, x, t, cond: Net.forward(self, x + torch.randn_like(x), t, cond)),
        "default generator",
    ),
    ("check_inputs_used", net(forward=lambda self, x, t, cond: Net.forward(self, x, 0 * t, cond)), "depend on t"),
    (
        "check_inputs_used",
        net(forward=lambda self, x, t, cond: Net.forward(self, x, t, {k: 0 * v for k, v in cond.items()})),
        "depend on cond",
    ),
    ("check_gradients", variant(Dense, build=lambda self, data: Idle(data)), "does not use its parameter unused"),
    ("check_state", variant(Dense, build=lambda self, data: Hidden(data)), "one state dict"),
    (
        "check_device",
        net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond) + torch.ones(x.shape)),
        "fails where weights and inputs are on one device",
    ),
    ("check_device", net(forward=lambda self, x, t, cond: torch.zeros(x.shape)), "returned a tensor on cpu"),
    ("check_compile", net(forward=broken_graph), "breaks the graph"),
    ("check_compile", net(forward=changed_by_compilation), "compiled, against"),
    (
        "check_autocast",
        net(forward=lambda self, x, t, cond: self.inner(x.flatten(1)).add(64).sub(64).view_as(x)),
        "away from float32",
    ),
    (
        "check_autocast",
        net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond) + infinite_slope(self.inner(x.flatten(1)))),
        "must be finite",
    ),
    ("check_second_order", net(forward=lambda self, x, t, cond: Once.apply(x)), "no second derivative"),
    (
        "check_second_order",
        net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond) * x.detach().square()),
        "forward mode",
    ),
    (
        "check_second_order",
        net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond) + Flat.apply(x)),
        "along v",
    ),
]


@pytest.mark.parametrize("check", [c for c in backbones.CHECKS if c.__name__ != "check_options"])
def test_backbone_that_is_right_passes(check):
    check(Dense())


@pytest.mark.parametrize(("check", "broken", "says"), BACKBONES)
def test_backbone_detector_fires(check, broken, says):
    with pytest.raises(AssertionError, match=says):
        getattr(backbones, check)(broken)


def test_every_backbone_check_has_a_case_that_fires():
    assert {check for check, _, _ in BACKBONES} == {c.__name__ for c in backbones.CHECKS} - {"check_options"}
