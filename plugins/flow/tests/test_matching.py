"""Flow matching: its minimiser, and where it is denoising score matching."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from itoflow import Backbone, IncompatibleError, InputError, NetworkField, OptionError, UndefinedError, compose
from itoflow.parametrization import Parametrization
from itoflow.testing import MixtureOracle, checks
from itoflow_flow.interpolant import Interpolant
from itoflow_flow.linear import Linear
from itoflow_flow.matching import FlowMatching
from itoflow_flow.trigonometric import Trigonometric
from itoflow_score.denoising import DenoisingScoreMatching

VARIANTS = {
    "defaults": FlowMatching(),
    "logit-normal, stratified": FlowMatching(times="logit-normal", logit_mean=0.5, logit_std=0.7, stratified=True),
    "predicting x0": FlowMatching(prediction="x0"),
    "min-snr weighting": FlowMatching(weighting="min-snr"),
    "velocity and score between two data sets": FlowMatching(score=True),
}


class Net(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width + 1, 16), nn.Tanh(), nn.Linear(16, width))

    def forward(self, x, t, cond):
        return self.layers(torch.cat([x, t[:, None].to(x)], 1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("check", checks("objective"))
def test_conformance(check, name):
    check(VARIANTS[name])


@pytest.mark.parametrize("process", [Linear(t_min=1e-3, t_max=0.99), Trigonometric(t_min=1e-3, t_max=0.99)])
@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "velocity"])
def test_gradient_is_that_of_score_matching_up_to_weight(process, prediction):
    """With the weighting `velocity` the two losses are equal, example by example, and so are their gradients.

    The velocity's error is |d_alpha - alpha d_sigma / sigma| times that of x0, so score matching's own weighting
    (sigma^2 on the score) must be divided by what turns one into the other.
    """
    torch.manual_seed(0)
    field = NetworkField(Net().double(), process, Parametrization(prediction=prediction))
    x0, t = torch.randn(32, 2, dtype=torch.float64), torch.linspace(0.05, 0.9, 32, dtype=torch.float64)
    sample = process.perturb(x0, t, generator=seeded())
    matched = FlowMatching(prediction=prediction).loss_at(field, sample)
    denoised = DenoisingScoreMatching(prediction=prediction, weighting="velocity").loss_at(field, sample)
    torch.testing.assert_close(matched, denoised, rtol=1e-10, atol=0)
    classic = DenoisingScoreMatching(prediction=prediction, weighting="sigma-squared").loss_at(field, sample)
    k = process.kernel(t)
    ratio = (k.d_alpha - k.alpha * k.d_sigma / k.sigma).square() * (k.sigma / k.alpha).square()
    torch.testing.assert_close(matched, ratio * classic, rtol=1e-10, atol=0)
    parameters = list(field.parameters())
    ours = torch.autograd.grad(matched.sum(), parameters, retain_graph=True)
    theirs = torch.autograd.grad((ratio * classic).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_loss_is_the_squared_error_of_the_velocity():
    """At the oracle, u - u_hat is what the loss says, computed by hand from both ends."""
    process = Linear()
    oracle = MixtureOracle(process, torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64), stds=0.3)
    x0, eps = torch.randn(64, 2, dtype=torch.float64, generator=seeded()), torch.randn(64, 2, dtype=torch.float64)
    t = torch.linspace(0, 1, 66, dtype=torch.float64)[1:-1]
    sample = process.path(x0, eps, t)
    expected = (eps - x0 - oracle(sample.x, t).velocity).square().mean(1)
    torch.testing.assert_close(FlowMatching().loss_at(oracle, sample), expected, rtol=1e-8, atol=1e-12)


def test_logit_normal_times_have_that_law():
    """Kolmogorov-Smirnov at a false-alarm rate of 1e-6, 20000 draws."""
    n = 20_000
    t = FlowMatching(times="logit-normal", logit_mean=0.3, logit_std=0.8).draw_times(
        Linear(), torch.empty(n, 1), seeded()
    )
    z = ((t / (1 - t)).log() - 0.3) / 0.8
    gap = (torch.special.ndtr(z.sort().values) - torch.arange(1, n + 1) / n).abs().max()
    assert float(gap) < math.sqrt(math.log(2 / 1e-6) / 2 / n)


class Small(Backbone):
    """A network on vectors of any length, so that two outputs fit too."""

    def build(self, data):
        return Net(data.shape[0])


def model(process, **options):
    return compose(process=process, objective=FlowMatching(**options), backbone=Small(), data=(2,))


def test_two_ends_come_at_call_time():
    two = model(Interpolant())
    x, far = torch.randn(5, 2), torch.randn(9, 2)
    assert two.loss(x, x1=far, generator=seeded()).shape == (5,)
    with pytest.raises(InputError, match=r"pass the far end too, loss\(x, x1=\.\.\.\)"):
        two.loss(x)
    with pytest.raises(InputError, match="x1 is empty"):
        two.loss(x, x1=far[:0])
    with pytest.raises(InputError, match="x1 is for a process between two data sets; Linear is none"):
        model(Linear()).loss(x, x1=far)
    with pytest.raises(UndefinedError, match="no prior density, and so no log_prob"):
        two.process.prior_log_prob(x)


def test_a_score_between_two_data_sets_is_a_second_output():
    two = model(Interpolant(sigma=0.5), score=True)
    x = torch.randn(5, 2)
    assert two.loss(x, x1=torch.randn(5, 2)).shape == (5,)
    assert two.field(x, torch.tensor(0.5)).score.shape == x.shape
    alone = model(Interpolant(sigma=0.5))
    with pytest.raises(UndefinedError, match="does not determine the score"):
        _ = alone.field(x, torch.tensor(0.5)).score
    with pytest.raises(IncompatibleError, match="sigma=0"):
        model(Interpolant(sigma=0.0), score=True)
    with pytest.raises(IncompatibleError, match="second output"):
        model(Linear(), score=True)


@pytest.mark.parametrize("options", [{"prediction": "x0"}, {"weighting": "min-snr"}])
def test_what_two_ends_cannot_have_is_refused(options):
    with pytest.raises(IncompatibleError, match="joins two data sets"):
        model(Interpolant(), **options)


def test_options_out_of_range():
    with pytest.raises(OptionError, match="logit_std"):
        FlowMatching(logit_std=0.0)
