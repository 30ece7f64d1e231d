"""The losses of the papers, written a second time, and the laws of the times."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import nn

from itoflow import DataSpec, ItoflowWarning, NetworkField, Parametrization
from itoflow.parametrization import PredictionName
from itoflow.testing import GaussianOracle
from itoflow.testing.objectives import Rewritten
from itoflow.testing.problems import Exploding, Preserving, Straight, mixture, seeded
from itoflow_score.denoising import DenoisingScoreMatching, _importance
from itoflow_score.edm import EDMObjective
from itoflow_score.weightings import WeightingName

PREDICTIONS, WEIGHTINGS = get_args(PredictionName), get_args(WeightingName)
S = 0.6


def setting(process, n=200):
    """A wrong field (the exact one of other data), and noisy data at times over the whole interval."""
    field = GaussianOracle(process, torch.tensor([0.3, 0.2], dtype=torch.float64), 0.5)
    field.data_std = S
    x0 = mixture(process).sample(n, generator=seeded(0))
    t = torch.linspace(process.t_min, process.t_max, n + 2, dtype=torch.float64)[1:-1]
    return field, process.perturb(x0, t, generator=seeded(1))


def mean_square(error):
    return error.square().flatten(1).mean(1)


def close(loss, expected):
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("process", [Preserving(), Exploding(), Straight()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_weighting_means_the_same_in_every_prediction(process, weighting):
    field, sample = setting(process)
    losses = {}
    for prediction in PREDICTIONS:
        rewritten = Rewritten(field, Parametrization(prediction=prediction, data_std=S))
        losses[prediction] = DenoisingScoreMatching(prediction=prediction, weighting=weighting).loss_at(
            rewritten, sample
        )
    for prediction, loss in losses.items():
        torch.testing.assert_close(loss, losses["x0"], rtol=1e-10, atol=1e-10, msg=lambda m, p=prediction: f"{p}: {m}")


@pytest.mark.parametrize("process", [Preserving(), Exploding(), Straight()], ids=lambda p: type(p).__name__)
class TestWeightings:
    """Each weighting as the squared error that its paper takes."""

    def loss(self, process, weighting, **options):
        field, sample = setting(process)
        objective = DenoisingScoreMatching(prediction="x0", weighting=weighting, **options)
        k = process.kernel(sample.t, 2)
        return objective.loss_at(field, sample), field(sample.x, sample.t), sample, k

    def test_sigma_squared_is_the_error_of_the_noise(self, process):
        """DDPM, equation 14; score SDE, section 3.3: sigma^2 |s - target|^2."""
        loss, prediction, sample, k = self.loss(process, "sigma-squared")
        close(loss, mean_square(prediction.eps - sample.eps))
        close(loss, mean_square(k.sigma * (prediction.score + sample.eps / k.sigma)))

    def test_likelihood_is_g2_times_the_error_of_the_score(self, process):
        """Song et al. 2021, equation 7."""
        loss, prediction, sample, k = self.loss(process, "likelihood")
        g = process.diffusion(sample.t)
        close(loss, g.square() * mean_square(prediction.score + sample.eps / k.sigma))

    def test_edm_lambda(self, process):
        """Table 1, with sigma read as sigma/alpha: (sigma^2 + s^2) / (sigma s)^2 |D - y|^2."""
        loss, prediction, sample, k = self.loss(process, "edm")
        sigma = (k.sigma / k.alpha)[:, 0]
        close(loss, (sigma**2 + S**2) / (sigma * S) ** 2 * mean_square(prediction.x0 - sample.x0))

    def test_min_snr(self, process):
        """Hang et al. 2023, section 3.4: min(SNR, gamma) on the error of x0."""
        loss, prediction, sample, k = self.loss(process, "min-snr", gamma=3.0)
        snr = (k.alpha / k.sigma).square()[:, 0]
        assert bool((snr > 3).any())
        assert bool((snr < 3).any())
        close(loss, torch.minimum(snr, torch.full_like(snr, 3.0)) * mean_square(prediction.x0 - sample.x0))

    def test_soft_min_snr_lies_below_and_meets_min_snr_in_both_limits(self, process):
        soft, hard = (self.loss(process, name, gamma=3.0)[0] for name in ("soft-min-snr", "min-snr"))
        ratio = soft / hard
        assert bool((ratio <= 1).all())
        assert float(ratio.min()) >= 0.5 - 1e-9
        assert float(ratio[0]) > 0.9

    def test_velocity_is_the_error_of_the_velocity(self, process):
        """Flow matching: |v - (d_alpha x0 + d_sigma eps)|^2."""
        loss, prediction, sample, k = self.loss(process, "velocity")
        close(loss, mean_square(prediction.velocity - (k.d_alpha * sample.x0 + k.d_sigma * sample.eps)))

    def test_v_is_the_error_of_v_where_the_process_preserves_variance(self, process):
        """Salimans and Ho 2022, section 4."""
        loss, prediction, sample, k = self.loss(process, "v")
        norm = torch.hypot(k.alpha, k.sigma)[:, 0]
        v = k.alpha * prediction.eps - k.sigma * prediction.x0 - (k.alpha * sample.eps - k.sigma * sample.x0)
        close(loss, mean_square(v) / norm.square())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.7, -0.3], [0.2, 0.5]], dtype=torch.float64))

    def forward(self, x, t, cond):
        return torch.tanh(x @ self.weight) + t[:, None] * x


def test_edm_objective_is_the_paper_s_loss():
    """Section 5 and table 1: lambda(sigma) |D(x; sigma) - y|^2, D = c_skip x + c_out F(c_in x; c_noise)."""
    process, objective, net = Exploding(), EDMObjective(), Net()
    field = NetworkField(net, process, Parametrization(prediction="edm", data_std=S))
    _, sample = setting(process)
    sigma = process.sigma(sample.t)[:, None]
    c_skip, c_out = S**2 / (sigma**2 + S**2), sigma * S / (sigma**2 + S**2).sqrt()
    c_in, weight = 1 / (sigma**2 + S**2).sqrt(), (sigma**2 + S**2) / (sigma * S) ** 2
    denoised = c_skip * sample.x + c_out * net(c_in * sample.x, process.network_time(sample.t), {})
    close(objective.loss_at(field, sample), (weight * (denoised - sample.x0) ** 2).mean(1))
    torch.testing.assert_close(weight * c_out**2, torch.ones_like(weight))  # unit weight on F, equation 8


@pytest.mark.parametrize("stratified", [False, True])
def test_log_normal_times_have_the_law_of_the_paper(stratified):
    """Kolmogorov-Smirnov on 20000 draws, 1e-6 false alarms; what is beyond the process's range lies at its ends."""
    process, mean, std = Exploding(), -0.4, 0.8
    objective = EDMObjective(log_sigma_mean=mean, log_sigma_std=std, stratified=stratified)
    t = times_of(objective, process, 20_000)
    log_sigma = process.sigma(t).log().sort().values
    n, low, high = len(t), math.log(0.05), math.log(10.0)
    inside = (log_sigma > low + 1e-9) & (log_sigma < high - 1e-9)
    cdf = torch.special.ndtr((log_sigma - mean) / std)
    empirical = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert float((cdf - empirical).abs()[inside].max()) < math.sqrt(math.log(2e6) / 2 / n)
    assert bool(((log_sigma >= low - 1e-9) & (log_sigma <= high + 1e-9)).all())


def times_of(objective, process, n):
    """The times at which the objective looks in one call on n examples."""
    seen = []

    class Spy(GaussianOracle):
        def forward(self, x, t, cond=None):
            seen.append(t)
            return super().forward(x, t, cond)

    oracle = Spy(process, torch.zeros(2, dtype=torch.float64), S**2)
    objective(Rewritten(oracle, Parametrization(prediction="edm", data_std=S)), torch.zeros(n, 2), generator=seeded(3))
    return torch.cat(seen)


@pytest.mark.parametrize("process", [Preserving(), Exploding()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("weighting", ["likelihood", "sigma-squared", "velocity"])
def test_importance_times_give_the_same_loss_with_no_more_variance(process, weighting):
    """40000 draws each, not stratified: means within 5 standard errors of each other, variance at most 1.1 times.

    The field is the exact one, whose loss is what the density is made for.
    """
    oracle = GaussianOracle(process, torch.zeros(2, dtype=torch.float64), S**2)
    x0 = oracle.sample(40_000, generator=seeded(0))
    options = {"prediction": "v", "weighting": weighting, "stratified": False}
    field = Rewritten(oracle, Parametrization(prediction="v", data_std=S))
    uniform, importance = (
        DenoisingScoreMatching(times=times, **options)(field, x0, generator=seeded(1))
        for times in ("uniform", "importance")
    )
    error = ((uniform.var() + importance.var()) / len(x0)).sqrt()
    assert abs(float(uniform.mean() - importance.mean())) < 5 * float(error)
    assert float(importance.var()) <= 1.1 * float(uniform.var())
    if weighting == "likelihood" and isinstance(process, Preserving):
        assert float(importance.var()) < 0.1 * float(uniform.var())  # the case it is for


def test_stratified_times_are_uniform_and_spread_evenly():
    """One time in each n-th part of the interval, in an order that does not follow the data's."""
    process, n = Preserving(), 1000
    t = times_of(DenoisingScoreMatching(prediction="v", stratified=True), process, n)
    u = (t - process.t_min) / (process.t_max - process.t_min)
    assert (u * n).ceil().sort().values.tolist() == list(range(1, n + 1))
    assert abs(float(torch.corrcoef(torch.stack([u, torch.arange(n, dtype=torch.float64)]))[0, 1])) < 5 / n**0.5


def test_weights_are_finite_where_no_signal_is_left():
    for weighting in WEIGHTINGS:
        weight = DenoisingScoreMatching(weighting=weighting).weight(Straight(), torch.ones(1, dtype=torch.float64), S)
        assert bool(torch.isfinite(weight).all()), weighting


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_importance_times_do_not_depend_on_the_unit_of_the_data(unit):
    """In multiples of s noise is the same in any unit, and so are the times at which a network is to look."""

    class Unit(Exploding):
        scale: float = 1.0

        def sigma(self, t):
            return self.scale * super().sigma(t)

    def density(scale):
        objective = DenoisingScoreMatching(times="importance", weighting="x0")
        return _importance(objective, Unit(scale=scale), scale * S).times(torch.linspace(0.01, 1, 100).double())[0]

    close(density(unit), density(1.0))


@pytest.mark.parametrize(("std", "fits"), [(0.01, -5.1), (100.0, 4.1)])
def test_log_normal_times_that_never_reach_the_data_are_a_warning(std, fits):
    data = DataSpec(shape=(2,), std=std)
    for _ in range(2):  # each time
        with pytest.warns(ItoflowWarning, match=rf"EDMObjective\(log_sigma_mean=-1.2.* use log_sigma_mean={fits}\."):
            EDMObjective().parametrization(Exploding(), data)
    EDMObjective(log_sigma_mean=fits).parametrization(Exploding(), data)
