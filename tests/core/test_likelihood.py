"""Likelihoods against densities that are known, term by term; on the kit's processes, so with no plugin installed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import itoflow
from itoflow import (
    Dynamics,
    Field,
    GenerativeModel,
    NetworkField,
    Parametrization,
    Sampler,
)
from itoflow.backbone import DataSpec
from itoflow.errors import (
    IncompatibleError,
    InputError,
    ItoflowWarning,
    NumericalError,
    OptionError,
    UndefinedError,
    UnknownComponentError,
)
from itoflow.field import Conditions
from itoflow.likelihood import decode, encode, likelihood
from itoflow.model import evaluating
from itoflow.prediction import Prediction
from itoflow.testing import GaussianOracle, MixtureOracle
from itoflow.testing.problems import Exploding, Preserving, Straight, UndeclaredOracle, gaussian, mixture, seeded


class RungeKutta(Sampler):
    """The classical method on a grid that is fine near data: the least that a likelihood can run on."""

    steps: int = 200
    rtol: float = 1e-3
    atol: float = 1e-3

    def integrate(self, dynamics: Dynamics, state: Tensor, t_from: float, t_to: float) -> Tensor:
        unit = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64) ** 2
        times = t_from + (t_to - t_from) * (unit if t_from < t_to else 1 - unit.flip(0))
        for t, h in zip(times, times.diff(), strict=False):
            first = dynamics.drift(state, t)
            second = dynamics.drift(state + h / 2 * first, t + h / 2)
            third = dynamics.drift(state + h / 2 * second, t + h / 2)
            fourth = dynamics.drift(state + h * third, t + h)
            state = state + h / 6 * (first + 2 * second + 2 * third + fourth)
        return state

    def __call__(self, field: Field, x: Tensor, cond: Any = None, **options: Any) -> Tensor:
        raise NotImplementedError


class Endless(Straight):
    """A process whose far end is data: it has no prior density."""

    def prior_log_prob(self, x: Tensor) -> Tensor:
        raise UndefinedError("Endless has no prior density: its far end is data.")


@pytest.fixture(autouse=True)
def _none_installed(isolated: None) -> None:
    """Names are looked up among no plugins."""


METHOD = RungeKutta()
PROCESSES = [Preserving(), Exploding(), Straight()]


def field_and_data(process: Any, n: int = 64) -> tuple[MixtureOracle, Tensor]:
    field = mixture(process)
    return field, field.sample(n, generator=seeded(0))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
class TestTerms:
    """Each part of log p(x) against its exact value."""

    def test_change_is_that_of_the_exact_density(self, process: Any) -> None:
        """log p at t_min less log p at t_max, 1e-6 nats for 200 Runge-Kutta steps."""
        field, x = field_and_data(process)
        found = likelihood(field, x, method=METHOD)
        start = float(process.ends()[0].alpha) * x
        exact = field.log_prob(start, process.t_min) - field.log_prob(found.latent, process.t_max)
        torch.testing.assert_close(found.change, exact, rtol=0, atol=1e-6)

    def test_prior_is_the_density_that_sampling_starts_from(self, process: Any) -> None:
        field, x = field_and_data(process)
        found = likelihood(field, x, method=METHOD)
        law = torch.distributions.Normal(0.0, process.prior_std())
        torch.testing.assert_close(found.prior, law.log_prob(found.latent).sum(1))

    def test_scale_makes_it_a_density_of_the_data(self, process: Any) -> None:
        field, x = field_and_data(process)
        found = likelihood(field, x, method=METHOD)
        alpha = float(process.ends()[0].alpha)
        assert found.scale == pytest.approx(2 * math.log(alpha), abs=1e-15)
        torch.testing.assert_close(found.log_prob, found.prior + found.change + found.scale)
        assert found.evaluations == 800

    def test_the_end_at_t_min_is_smoothing_by_s(self, process: Any) -> None:
        """log p - log p_0 = s^2/2 (lap log p_0 + |grad log p_0|^2) + O(s^4), both sides exact, for N(m, C) data."""
        field = gaussian(process)
        x = field.sample(64, generator=seeded(0))
        end = process.ends()[0]
        s2 = float((end.sigma / end.alpha) ** 2)
        smoothed = field.log_prob(float(end.alpha) * x, process.t_min) + 2 * math.log(float(end.alpha))
        law = torch.distributions.MultivariateNormal(*field.moments())
        precision = law.precision_matrix
        score = -(x - law.mean) @ precision
        expected = s2 / 2 * (score.square().sum(1) - precision.trace())
        spread = float(1 + (x - law.mean).square().sum(1).max() ** 2)
        allowed = 3 * s2**2 * float(precision.trace() ** 2) * spread + 1e-12
        torch.testing.assert_close(smoothed - law.log_prob(x), expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("field", [UndeclaredOracle(gaussian(Preserving()))], ids=["Undeclared"])
def test_a_process_that_is_not_gaussian(field: UndeclaredOracle) -> None:
    x = field.known.sample(16, 1e-3, generator=seeded(0))
    found = likelihood(field, x, method=METHOD)
    exact = field.known.log_prob(x, 1e-3) - field.known.log_prob(found.latent, 1.0)
    torch.testing.assert_close(found.change, exact, rtol=0, atol=1e-6)
    assert found.scale == 0


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_continuity_equation(process: Any) -> None:
    """d log p / dt + div v + v . grad log p = 0 on oracle densities, to 1e-6 relative in float64, by autograd."""
    field = mixture(process)
    for t in torch.linspace(process.t_min, process.t_max, 13, dtype=torch.float64)[1:-1]:
        x = field.sample(50, float(t), generator=seeded(1)).requires_grad_()
        time = t.clone().expand(50).clone().requires_grad_()
        change, gradient = torch.autograd.grad(field.log_prob(x, time).sum(), (time, x))
        v = field(x, t).velocity
        divergence = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
        residual = change + divergence + (v * gradient).sum(1)
        size = change.abs() + (v * gradient).sum(1).abs() + 1
        assert float((residual / size).detach().abs().max()) < 1e-6


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(probe: Any) -> None:
    """200 probes, one by one: the mean within 3.5 standard errors of the exact value, at each of 16 points."""
    field, x = field_and_data(Preserving(), 16)
    options: Any = {"method": RungeKutta(steps=40), "batch": 3200}
    exact = likelihood(field, x, **options).log_prob
    options |= {"divergence": "hutchinson", "probe": probe, "generator": seeded(2)}
    draws = likelihood(field, x.repeat(200, 1), **options).log_prob.view(200, 16)
    error = draws.std(0) / 200**0.5
    assert float(((draws.mean(0) - exact) / error).abs().max()) < 3.5
    assert float(error.min()) > 1e-4  # it is a random number


def test_many_probes_at_once_have_less_variance() -> None:
    field, x = field_and_data(Straight(), 256)
    method = RungeKutta(steps=20)
    exact = likelihood(field, x, method=method).log_prob
    one, many = (
        likelihood(field, x, method=method, divergence="hutchinson", probes=n, generator=seeded(3)).log_prob - exact
        for n in (1, 16)
    )
    assert 3 < float(one.std() / many.std()) < 5.5


def test_blocks_and_rows_do_not_change_the_result() -> None:
    field, x = field_and_data(Preserving(), 10)
    method = RungeKutta(steps=10)
    whole = likelihood(field, x, method=method)
    parts = likelihood(field, x, method=method, batch=3, rows=1)
    torch.testing.assert_close(whole.log_prob, parts.log_prob)
    torch.testing.assert_close(whole.latent, parts.latent)
    assert whole.evaluations == parts.evaluations == 40


class ByClass(Field):
    """N(c, 1/4) data in class c, by the condition's row."""

    def __init__(self) -> None:
        super().__init__(Straight())
        self.zero = GaussianOracle(Straight(), torch.zeros(2, dtype=torch.float64), 0.25)

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Prediction:
        assert cond is not None
        assert len(cond["class"]) == len(x)
        shift = cond["class"].to(x.dtype)[:, None]
        k = self.process.kernel(t)  # type: ignore[attr-defined]
        inner = self.zero(x - k.alpha * shift, t)
        moved: Prediction = NetworkField(_Fixed(inner.x0 + shift), Straight(), Parametrization(prediction="x0"))(x, t)
        return moved


class _Fixed(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.value


def test_conditions_go_with_their_rows() -> None:
    label = torch.arange(12) % 3
    x = torch.randn(12, 2, generator=seeded(0), dtype=torch.float64) / 2 + label[:, None]
    exact = torch.distributions.Normal(label[:, None].double(), 0.5).log_prob(x).sum(1)
    field = ByClass()
    field.process = field.process.replace(t_min=1e-4)
    found = likelihood(field, x, {"class": label}, method=METHOD, batch=5).log_prob
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_encoding_is_the_exact_flow_and_comes_back(process: Any) -> None:
    field = gaussian(process)
    x = field.sample(16, generator=seeded(0))
    latent = encode(field, x, method=METHOD)
    alpha = float(process.ends()[0].alpha)
    torch.testing.assert_close(latent, field.flow(alpha * x, process.t_min, process.t_max), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(decode(field, latent, method=METHOD), x, rtol=0, atol=1e-6)


class Net(nn.Module):
    """tanh(W x) + t b, with dropout."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, generator=seeded(5)).to(dtype))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.dropout(torch.tanh(x @ self.weight) + t[:, None] * x)


def network(dtype: torch.dtype = torch.float64, prediction: Any = "velocity") -> NetworkField:
    return NetworkField(Net(dtype), Straight(), Parametrization(prediction=prediction)).eval()


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_gradient_in_the_weights(mode: Any, divergence: Any) -> None:
    """Against central differences of 1e-5; and no graph is kept unless asked for."""
    field, x = network(), torch.randn(4, 2, generator=seeded(0), dtype=torch.float64)
    weight = field.net.weight
    options: Any = {"method": RungeKutta(steps=5), "divergence": divergence, "mode": mode}

    def total(**more: Any) -> Tensor:
        return likelihood(field, x, generator=seeded(7), **options, **more).log_prob.sum()

    assert not total().requires_grad
    (gradient,) = torch.autograd.grad(total(differentiable=True), weight)
    for i, j in ((0, 0), (1, 0)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[i, j] += step
                values.append(float(total()))
                weight[i, j] -= step
        assert float(gradient[i, j]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-7)


def test_gradient_in_x_is_the_score() -> None:
    field, x = field_and_data(Straight(), 8)
    x.requires_grad_()
    found = likelihood(field, x, method=METHOD, differentiable=True).log_prob
    (score,) = torch.autograd.grad(found.sum(), x)
    (exact,) = torch.autograd.grad(field.log_prob(x, 0.0).sum(), x)
    torch.testing.assert_close(score, exact, rtol=1e-5, atol=1e-5)


def test_a_float32_network_gives_float64_nats_also_in_inference_mode() -> None:
    field, x = network(torch.float32), torch.randn(4, 2, generator=seeded(0))
    found = likelihood(field, x, method=METHOD).log_prob
    assert found.dtype == torch.float64
    with torch.inference_mode():
        x = torch.randn(4, 2, generator=seeded(0))
        torch.testing.assert_close(likelihood(field, x, method=METHOD).log_prob, found)


def test_what_is_not_finite_names_field_process_and_time() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(NumericalError, match=r"NetworkField on Straight.*not finite at t = 0, for 3 of 3.*raise t_min"):
        likelihood(network(prediction="x0"), x, method=METHOD)
    field = network()
    field.net.weight.data.fill_(math.nan)
    with pytest.raises(NumericalError, match=r"not finite at t = 0, for 3 of 3 examples"):
        likelihood(field, x, method=METHOD)


def test_a_process_without_prior_density_says_so_before_anything_runs() -> None:
    field, x = field_and_data(Endless())
    with pytest.raises(UndefinedError, match="Endless has no prior density"):
        likelihood(field, x, method=METHOD)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"divergence": "approximate"}, OptionError, "divergence is one of exact, hutchinson"),
    ({"mode": "both"}, OptionError, "mode is one of auto, forward, reverse"),
    ({"divergence": "hutchinson", "probes": 0}, InputError, "at least 1. Given: 0"),
    ({"divergence": "exact", "probes": 0}, InputError, "at least 1. Given: 0"),
    ({"batch": 0}, InputError, "batch must be a whole number of at least 1"),
    ({"rows": 1.5}, InputError, "rows must be a whole number"),
    (
        {"divergence": "hutchinson", "generator": [torch.Generator()]},
        InputError,
        "one for the whole batch. Given: list",
    ),
]


@pytest.mark.parametrize(("options", "error", "text"), BAD, ids=lambda value: str(value)[:40])
def test_bad_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    field, x = field_and_data(Straight())
    with pytest.raises(error, match=text):
        likelihood(field, x, **{"method": METHOD, **options})


def test_no_examples() -> None:
    field, x = field_and_data(Straight())
    with pytest.raises(InputError, match="this batch is empty"):
        likelihood(field, x[:0], method=METHOD)
    for run in (encode, decode):
        with pytest.raises(InputError, match="this batch is empty"):
            run(field, x[:0], method=METHOD)


class TestMethod:
    """The integrator comes by name from the samplers."""

    def test_no_plugin_has_the_default(self) -> None:
        field, x = field_and_data(Straight())
        with pytest.raises(UnknownComponentError, match="pip install itoflow-ode"):
            likelihood(field, x)

    def test_a_sampler_that_cannot(self, toy: Any) -> None:
        field, x = field_and_data(Straight())
        with pytest.raises(IncompatibleError, match=r"Sampler Jump offers no integrate\(.*Samplers that do: none"):
            likelihood(field, x, method="jump")

    def test_tolerances_that_it_does_not_have(self, toy: Any) -> None:
        class Fixed(RungeKutta):
            def integrate(self, dynamics: Dynamics, state: Tensor, t_from: float, t_to: float) -> Tensor:
                assert self.rtol == 1e-6
                assert self.atol == pytest.approx(1e-7)
                return super().integrate(dynamics, state, t_from, t_to)

        field, x = field_and_data(Straight(), 2)
        likelihood(field, x, method=Fixed(steps=2), rtol=1e-6)
        with pytest.raises(OptionError, match="rtol"):
            likelihood(field, x, method=METHOD, rtol="tight")  # type: ignore[arg-type]

    def test_names_those_that_can(self, install: Any) -> None:
        parts = (
            "from itoflow import Sampler\nclass Able(Sampler):\n"
            "    def __call__(self, *a, **b): ...\n    def integrate(self, *a): ...\n"
        )
        plugin = (
            "from itoflow import Registration, hookimpl\n"
            "@hookimpl\ndef itoflow_samplers():\n"
            "    return [Registration('able', 'itoflow_able.parts:Able', 'x'), "
            "Registration('torn', 'itoflow_able.none:No', 'x')]\n"
        )
        install("itoflow-able", plugin=plugin, parts=parts)

        class Unable(Sampler):
            def __call__(self, field: Field, x: Tensor, cond: Any = None, **options: Any) -> Tensor:
                raise NotImplementedError

        field, x = field_and_data(Straight())
        with pytest.raises(IncompatibleError, match="Samplers that do: able"):
            likelihood(field, x, method=Unable())


class TestModel:
    """The methods of a composed model."""

    @pytest.fixture
    def model(self, toy: Any) -> GenerativeModel:
        return itoflow.compose(
            process="decay", objective="denoise", backbone="linear", data=DataSpec(shape=(3,), levels=5)
        )

    def test_log_prob_and_its_terms(self, model: GenerativeModel) -> None:
        x = torch.randn(4, 3, generator=seeded(0))
        found = model.likelihood(x, method=METHOD)
        torch.testing.assert_close(found.log_prob, model.log_prob(x, method=METHOD))
        assert found.log_prob.shape == (4,)
        assert found.scale == pytest.approx(-3 * 0.03)

    def test_the_network_is_in_evaluation_mode_and_then_as_before(self, model: GenerativeModel) -> None:
        x = torch.randn(4, 3, generator=seeded(0))
        model.train()
        model.field.net.dropout.eval()
        assert torch.equal(model.log_prob(x, method=METHOD), model.log_prob(x, method=METHOD))
        assert model.training
        assert not model.field.net.dropout.training

    def test_round_trip(self, model: GenerativeModel) -> None:
        x = torch.randn(4, 3, generator=seeded(0))
        back = model.decode(model.encode(x, method=METHOD), method=METHOD)
        torch.testing.assert_close(back, x.double(), rtol=0, atol=1e-6)
        assert torch.equal(model.round_trip(x, method=METHOD), back - x)

    @pytest.mark.parametrize("method", ["log_prob", "encode", "decode", "round_trip"])
    def test_wrong_shapes(self, model: GenerativeModel, method: str) -> None:
        with pytest.raises(InputError, match=r"must have shape \(B, 3\)"):
            getattr(model, method)(torch.zeros(4, 2), method=METHOD)
        with pytest.raises(InputError, match="unexpected: \\['class'\\]"):
            getattr(model, method)(torch.zeros(4, 3), {"class": 1}, method=METHOD)

    def test_discrete_data_warn(self, model: GenerativeModel) -> None:
        with pytest.warns(ItoflowWarning, match="lie on 5 levels.*dequantise"):
            model.log_prob(torch.tensor([[-1.0, 0.5, 1.0]]), method=METHOD)

    def test_a_misspelt_option(self, model: GenerativeModel) -> None:
        with pytest.raises(OptionError, match=r"likelihood has no option 'probse'\. Did you mean 'probe'"):
            model.log_prob(torch.zeros(1, 3) + 0.1, probse=3)  # type: ignore[call-arg]
        with pytest.raises(OptionError, match="encode has no option 'probes'"):
            model.round_trip(torch.zeros(1, 3) + 0.1, probes=3)  # type: ignore[call-arg]


def test_evaluating_leaves_modes_alone() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(net):
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == [True, True, False]
