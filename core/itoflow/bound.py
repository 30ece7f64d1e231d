r"""A lower bound on the density of what the reverse SDE generates.

The reverse SDE with a learned score s and velocity v = f - g^2 s / 2, run from the prior, has no density in closed
form. Girsanov's theorem compares its paths with those of the forward SDE from x_m = x_{t_min}, and so bounds it:

    log p(x_m) >= E log prior(x_{t_max}) + int_{t_min}^{t_max} E [ div v - g^2/2 (|s|^2 + div s) ](x_t, t) dt        (1)

where x_t is drawn from the forward kernel from x_m,

    x_t = r x_m + (sigma^2 - r^2 sigma_m^2)^{1/2} eps,   r = alpha / alpha_m.                                      (2)

The two sides differ by the Kullback-Leibler divergence between forward and generated paths given x_m: none where s is
the score of p_t and the prior is p_{t_max}.

The first term is exact. The integral is estimated at `times` values of lambda = 2 log(alpha / sigma), one in each of as
many equal parts; where alpha or sigma reaches 0, lambda is cut at +- 20, by which times within 5e-5 of an end of the
linear path are left out. A control variate takes most of the noise away: for data N(0, c I), c the model's data
variance, (1) is an equality with every term but the integral known, so that the integral is too, and only the
difference to that law's integrand is estimated, on the same draws. x at data scale has D log alpha_m more, as in
`itoflow.likelihood`.

References:
    Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021), https://arxiv.org/abs/2101.09258,
    theorem 3, in the form with div s. Variational Diffusion Models (Kingma et al., 2021),
    https://arxiv.org/abs/2107.00630, section 5.1, for integration over lambda.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from itoflow.divergence import Divergence, DivergenceName, ProbeName, directions_of
from itoflow.errors import IncompatibleError, InputError
from itoflow.field import Field
from itoflow.likelihood import velocity_of
from itoflow.noise import normal, uniform
from itoflow.process import GaussianProcess, broadcast_time

_CUT = 20.0


@dataclass(frozen=True)
class Bound:
    """The right side of equation (1), for x in data units.

    Arguments:
        log_prob: the estimate, (B,), nats, float64.
        error: its standard error from the scatter over times, (B,); too large, as the times are stratified.
    """

    log_prob: Tensor
    error: Tensor


def likelihood_bound(
    field: Field,
    x: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    *,
    times: int = 32,
    divergence: DivergenceName = "hutchinson",
    probes: int = 1,
    probe: ProbeName = "rademacher",
    rows: int = 256,
    generator: torch.Generator | None = None,
) -> Bound:
    """Equation (1) for x (B, *S), by `times` draws of time, noise and probes for each example.

    Raises:
        IncompatibleError: the process is not Gaussian, so that equation (2) has no closed form.
        InputError: fewer than two times, no examples, no probes, rows below 1.
        OptionError: an unknown divergence.
        UndefinedError: the process has no prior density.
    """
    process = field.process
    if not isinstance(process, GaussianProcess):
        raise IncompatibleError(
            f"The bound of the reverse SDE draws from a GaussianProcess; {type(process).__name__} is none. "
            "model.log_prob needs only a process with a prior density."
        )
    if type(times) is not int or times < 2:
        raise InputError(f"times must be a whole number of at least 2. Given: {times!r}.")
    if not len(x):
        raise InputError("A likelihood needs at least one example; this batch is empty.")
    size = x[0].numel()
    first, last = process.ends()
    alpha = float(first.alpha)
    start = x.detach().to(torch.float64) * alpha
    high, low = (_log_snr(float(k.alpha), float(k.sigma)) for k in (first, last))
    step, terms, variance = (high - low) / times, [], field.data_std**2
    with torch.inference_mode(False):
        start = start.clone()
        for i in range(times):
            u = 1 - uniform(len(x), like=x, generator=generator)  # in [0, 1)
            t = process.log_snr_inverse(low + step * (i + u))
            drawn = directions_of(divergence, probes, probe, start, generator)
            noisy = _forward(process, start, t, generator)
            integrand = _integrand(field, noisy, t, dict(cond or {}), Divergence(drawn, rows=rows))
            terms.append((integrand - _control(process, noisy, t, variance)) * _dt_dlog_snr(process, t))
        ratio = float(last.alpha) / alpha
        spread = float(last.sigma) ** 2 - (ratio * float(first.sigma)) ** 2
        square = start.flatten(1).square().sum(1)
        late = (ratio**2 * square + size * spread, float(last.alpha) ** 2 * variance + float(last.sigma) ** 2)
        early = (square, alpha**2 * variance + float(first.sigma) ** 2)
        known = _normal(*early, size) - _normal(*late, size)
        prior = process.prior_log_prob(ratio * start) - size * spread / (2 * process.prior_std() ** 2)
    each = torch.stack(terms) * step * times
    return Bound(prior + known + each.mean(0) + size * math.log(alpha), each.std(0) / math.sqrt(times))


def _integrand(field: Field, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], trace: Divergence) -> Tensor:
    """div v - g^2/2 (|s|^2 + div s), (B,), by g^2/2 s = f - v: one divergence gives both."""
    v, div_v = trace(velocity_of(field, t, cond), x)
    k = field.process.kernel(t)  # type: ignore[attr-defined]
    rate = k.d_alpha / k.alpha
    half = field.process.diffusion(t).square() / 2
    pushed = broadcast_time(rate, x.ndim) * x - v
    value: Tensor = 2 * div_v - rate * x[0].numel() - pushed.flatten(1).square().sum(1) / half
    return value


def _control(process: GaussianProcess, x: Tensor, t: Tensor, variance: float) -> Tensor:
    """The integrand for data N(0, variance I), whose score is -x / V."""
    k, size = process.kernel(t), x[0].numel()
    total, half = k.alpha.square() * variance + k.sigma.square(), process.diffusion(t).square() / 2
    square = x.flatten(1).square().sum(1)
    value: Tensor = size * (k.d_alpha / k.alpha + 2 * half / total) - half * square / total.square()
    return value


def _normal(square: Tensor, variance: float, size: int) -> Tensor:
    """log N(x; 0, variance I) of |x|^2."""
    return -square / (2 * variance) - size / 2 * math.log(2 * math.pi * variance)


def _forward(process: GaussianProcess, start: Tensor, t: Tensor, generator: torch.Generator | None) -> Tensor:
    """Equation (2)."""
    k, first = process.kernel(t), process.ends()[0]
    ratio = k.alpha / first.alpha
    spread = (k.sigma.square() - (ratio * first.sigma).square()).clamp(min=0).sqrt()
    ratio, spread = (broadcast_time(value, start.ndim) for value in (ratio, spread))
    return ratio * start + spread * normal(start.shape, like=start, generator=generator)


def _log_snr(alpha: float, sigma: float) -> float:
    if sigma == 0 or alpha == 0:
        return _CUT if sigma == 0 else -_CUT
    return min(max(2 * math.log(alpha / sigma), -_CUT), _CUT)


def _dt_dlog_snr(process: GaussianProcess, t: Tensor) -> Tensor:
    """|dt / dlambda|, lambda = 2 log(alpha / sigma)."""
    k = process.kernel(t)
    return 1 / (2 * (k.d_sigma / k.sigma - k.d_alpha / k.alpha))
