r"""The density of what a model generates, by the probability-flow ODE.

Along dx/dt = v(x, t), the density moves by the continuity equation d p_t / dt = -div(p_t v), so that

    log p_{t_min}(x_{t_min}) = log prior(x_{t_max}) + int_{t_min}^{t_max} div v(x_t, t) dt,                (1)

and one ODE for (x, integral), started at (x_{t_min}, 0), gives both. It runs in float64 whatever the network's dtype.

The end at t_min. What (1) gives is the density at t_min, which for a Gaussian process is that of alpha x_0 + sigma eps.
Here a model is held to generate x = x_{t_min} / alpha(t_min), whose density is

    log p(x) = log p_{t_min}(alpha x) + D log alpha,   alpha = alpha(t_min),                                (2)

a normalised density of x, and exact for deterministic sampling that stops at t_min. Against the density of the data it
is smoothed by noise of scale s = sigma / alpha at t_min,

    log p - log p_0 = s^2/2 (lap log p_0 + |grad log p_0|^2) + O(s^4),

zero where sigma(t_min) = 0. The other end is the prior in place of p at t_max, whose mismatch is part of the model too.

Discrete data of L levels, w apart, have no density: x + w (u - 1/2) with u uniform in [0, 1)^D has, and with it

    log P(levels) >= E_u log p(x + w (u - 1/2)) + D log w,   bits per dimension = -log P / (D log 2).       (3)

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
    https://arxiv.org/abs/2011.13456, appendix D.2.
    Neural Ordinary Differential Equations (Chen et al., 2018), https://arxiv.org/abs/1806.07366, equation 8.
    A note on the evaluation of generative models (Theis et al., 2016), https://arxiv.org/abs/1511.01844, for (3).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, Unpack, cast

import torch
from torch import Tensor

from itoflow import registry
from itoflow.backbone import DataSpec
from itoflow.divergence import Divergence, DivergenceName, ModeName, ProbeName, Velocity, directions_of
from itoflow.dynamics import Dynamics, ProbabilityFlowODE
from itoflow.errors import (
    IncompatibleError,
    InputError,
    ItoflowError,
    ItoflowWarning,
    NumericalError,
    UnknownComponentError,
    listing,
)
from itoflow.field import Field
from itoflow.process import GaussianProcess
from itoflow.sampler import Sampler

METHOD = "dopri5"
"""The default integrator."""


class Integrator(Protocol):
    """What a sampler offers so that likelihoods can run on it."""

    def integrate(self, dynamics: Dynamics, state: Tensor, t_from: float, t_to: float) -> Tensor:
        """The state (B, ...) at t_to from that at t_from, either way in time, differentiable where the caller wants."""


class ODEOptions(TypedDict, total=False):
    """How an ODE is solved."""

    method: str | Mapping[str, Any] | Sampler
    """A sampler that offers `integrate`: a name, a mapping with `name`, or the sampler (default: dopri5)."""
    rtol: float | None
    """Relative tolerance (default: the sampler's own)."""
    atol: float | None
    """Absolute tolerance (default: a tenth of rtol where that is given, or else the sampler's own)."""


class LikelihoodOptions(ODEOptions, total=False):
    """How a likelihood is computed."""

    divergence: DivergenceName
    """`exact`, D directions an evaluation, or `hutchinson`, an unbiased estimate (default: exact)."""
    probes: int
    """Number of probes of hutchinson (default: 1)."""
    probe: ProbeName
    """Their law, `rademacher` or `gaussian` (default: rademacher)."""
    generator: torch.Generator | None
    """Draws the probes, which stay the same along a trajectory."""
    batch: int
    """Most examples that are solved together (default: 1024)."""
    rows: int
    """Most rows that enter the network at once, examples times directions (default: 256)."""
    mode: ModeName
    """Mode of differentiation, `reverse`, `forward`, or `auto`, which takes the first that works (default: auto)."""
    differentiable: bool
    """Keep the graph, so that log_prob can be differentiated in the weights, and in x if it requires a gradient
    (default: False)."""


@dataclass(frozen=True)
class Likelihood:
    """log_prob = prior + change + scale, all in nats and float64.

    Arguments:
        prior: log density of the prior at the latents, (B,).
        change: integral of the divergence, (B,), equation (1).
        scale: D log alpha(t_min), equation (2).
        latent: x at t_max, (B, *S), data units, float64.
        evaluations: of velocity and divergence; the most of any block of `batch` examples.
    """

    prior: Tensor
    change: Tensor
    scale: float
    latent: Tensor
    evaluations: int

    @property
    def log_prob(self) -> Tensor:
        """log p(x), (B,)."""
        return self.prior + self.change + self.scale


class AugmentedODE(Dynamics):
    """The probability-flow ODE for states (B, D + 1): x, and the integral of the divergence.

    Arguments:
        field: gives the velocity.
        cond: conditions, one row per example.
        shape: S.
        divergence: how the divergence is computed.
    """

    def __init__(
        self, field: Field, cond: Mapping[str, Tensor], shape: tuple[int, ...], divergence: Divergence
    ) -> None:
        self.field, self.cond, self.shape, self.divergence = field, cond, shape, divergence
        self.evaluations = 0

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity and divergence, (B, D + 1).

        Raises:
            NumericalError: either is not finite; names the field, the process and the time.
        """
        self.evaluations += 1
        velocity = velocity_of(self.field, t, self.cond)
        v, divergence = self.divergence(velocity, x[:, :-1].reshape(-1, *self.shape))
        slope = torch.cat([v.flatten(1), divergence[:, None]], dim=1)
        bad = ~torch.isfinite(slope).all(1)
        if bool(bad.any()):
            raise NumericalError(
                f"The velocity of {type(self.field).__name__} on {self.field.process!r}, or its divergence, is not "
                f"finite at t = {float(t):.6g}, for {int(bad.sum())} of {len(bad)} examples. If t is t_min and sigma "
                "is 0 there, the prediction determines no velocity: raise t_min, e.g. to 1e-3, or predict the velocity."
            )
        return slope

    def diffusion(self, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(t)


def velocity_of(field: Field, t: Tensor, cond: Mapping[str, Tensor]) -> Velocity:
    """The velocity of a field at t () or (B,) as `Divergence` takes it."""

    def velocity(y: Tensor, copies: int) -> Tensor:
        repeated = {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in cond.items()}
        v: Tensor = field(y, t.repeat(copies) if t.ndim else t, repeated).velocity
        return v

    return velocity


def likelihood(
    field: Field,
    x: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    *,
    method: str | Mapping[str, Any] | Sampler = METHOD,
    rtol: float | None = None,
    atol: float | None = None,
    divergence: DivergenceName = "exact",
    probes: int = 1,
    probe: ProbeName = "rademacher",
    generator: torch.Generator | None = None,
    batch: int = 1024,
    rows: int = 256,
    mode: ModeName = "auto",
    differentiable: bool = False,
) -> Likelihood:
    """The density of x (B, *S) under the field, equations (1) and (2); see `LikelihoodOptions` for the arguments.

    Raises:
        UndefinedError: the process has no prior density.
        IncompatibleError: the integrator is a sampler that cannot integrate.
        OptionError: tolerances that are not positive, an unknown option's value.
        InputError: no examples, no probes, a batch or rows below 1.
        NumericalError: values became non-finite, or the solver failed; names the component and the time.
    """
    if not len(x):
        raise InputError("A likelihood needs at least one example; this batch is empty.")
    if type(batch) is not int or batch < 1:
        raise InputError(f"batch must be a whole number of at least 1. Given: {batch!r}.")
    solver = integrator(method, rtol=rtol, atol=atol)
    process, shape = field.process, tuple(x.shape[1:])
    process.prior_log_prob(torch.zeros(1, *shape, dtype=torch.float64, device=x.device))  # says now if there is none
    alpha = data_scale(field)
    parts, evaluations = [], 0
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        for part, given in _blocks(x, cond or {}, batch):
            start = part.to(torch.float64) * alpha
            start = start if start.requires_grad or not start.is_inference() else start.clone()
            drawn = directions_of(divergence, probes, probe, start, generator)
            traced = Divergence(drawn, rows=rows, mode=mode, differentiable=differentiable)
            dynamics = AugmentedODE(field, given, shape, traced)
            state = torch.cat([start.flatten(1), start.new_zeros(len(start), 1)], dim=1)
            end = solver.integrate(dynamics, state, process.t_min, process.t_max)
            latent = end[:, :-1].reshape(-1, *shape)
            parts.append((process.prior_log_prob(latent), end[:, -1], latent))
            evaluations = max(evaluations, dynamics.evaluations)
    prior, change, latents = (torch.cat(values) for values in zip(*parts, strict=True))
    return Likelihood(prior, change, math.prod(shape) * math.log(alpha), latents, evaluations)


def encode(field: Field, x: Tensor, cond: Mapping[str, Tensor] | None = None, **options: Unpack[ODEOptions]) -> Tensor:
    """x at t_max, (B, *S), float64, of data x (B, *S), by the probability-flow ODE; raises what `likelihood` does."""
    process, start = field.process, x.to(torch.float64) * data_scale(field)
    return _flow(field, start, cond, process.t_min, process.t_max, **options)


def decode(
    field: Field, latent: Tensor, cond: Mapping[str, Tensor] | None = None, **options: Unpack[ODEOptions]
) -> Tensor:
    """The inverse of `encode`: data (B, *S), float64, from x at t_max."""
    process = field.process
    end = _flow(field, latent.to(torch.float64), cond, process.t_max, process.t_min, **options)
    return end / data_scale(field)


@torch.no_grad()
def _flow(
    field: Field,
    x: Tensor,
    cond: Mapping[str, Tensor] | None,
    t_from: float,
    t_to: float,
    *,
    method: str | Mapping[str, Any] | Sampler = METHOD,
    rtol: float | None = None,
    atol: float | None = None,
) -> Tensor:
    """x at t_to from x (B, *S) at t_from."""
    if not len(x):
        raise InputError("An encoding needs at least one example; this batch is empty.")
    solver = integrator(method, rtol=rtol, atol=atol)
    return solver.integrate(ProbabilityFlowODE(field, cond or {}), x, t_from, t_to)


def integrator(
    method: str | Mapping[str, Any] | Sampler, *, rtol: float | None = None, atol: float | None = None
) -> Integrator:
    """The sampler that integrates, with other tolerances where they are given.

    Raises:
        UnknownComponentError: no such sampler is installed.
        IncompatibleError: it does not offer `integrate`.
        OptionError: a tolerance that is not positive, or that the sampler does not have.
    """
    try:
        sampler: Sampler = registry.resolve("sampler", method)
    except UnknownComponentError as error:
        if method != METHOD:
            raise
        raise UnknownComponentError(
            f"{error}\nLikelihoods integrate by it unless told: pip install itoflow-ode"
        ) from None
    if not callable(getattr(sampler, "integrate", None)):
        raise IncompatibleError(
            f"Sampler {type(sampler).__name__} offers no integrate(dynamics, state, t_from, t_to), so that no "
            f"likelihood or encoding can run on it. Samplers that do: {listing(_integrators())}."
        )
    given = {name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    sampler = sampler.replace(**given) if given else sampler
    if rtol is not None and atol is None and "atol" in type(sampler).model_fields:
        sampler = sampler.replace(atol=rtol / 10)
    return cast(Integrator, sampler)


def data_scale(field: Field) -> float:
    """alpha(t_min) of equation (2); 1 where the process is not Gaussian."""
    process = field.process
    return float(process.ends()[0].alpha) if isinstance(process, GaussianProcess) else 1.0


def dequantise(x: Tensor, data: DataSpec, generator: torch.Generator | None = None) -> Tensor:
    """x + w (u - 1/2), equation (3), the shape and dtype of x.

    Raises:
        InputError: the data have no levels.
    """
    if data.levels is None:
        raise InputError("These data are continuous (levels=None in their data spec): there is nothing to dequantise.")
    device = x.device if generator is None else generator.device
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
    return x + level_width(data) * (u - 0.5)


def level_width(data: DataSpec) -> float:
    """w of equation (3), data units; 1 for continuous data."""
    return 1.0 if data.levels is None else (data.high - data.low) / (data.levels - 1)


def bits_per_dimension(log_prob: Tensor, data: DataSpec) -> Tensor:
    """Bits per value, (B,), of log densities in nats (B,), equation (3).

    For data with levels the bits are those of the levels; for continuous data those of the density in data units.
    """
    return -(log_prob / math.prod(data.shape) + math.log(level_width(data))) / math.log(2)


def warn_if_discrete(x: Tensor, data: DataSpec) -> None:
    """Warn where x lies on the levels, at which a density can be as high as one likes."""
    if data.levels is None:
        return
    width = level_width(data)
    levels = (x.detach().to(torch.float64) - data.low) / width
    rounding = torch.finfo(x.dtype).eps * max(abs(data.low), abs(data.high)) / width  # 16 bits in float32 have 0.004
    if bool(((levels - levels.round()).abs() < min(1e-4 + rounding, 0.1)).all()):
        warnings.warn(
            f"These data lie on {data.levels} levels, where a density means nothing: add uniform noise first, "
            "itoflow.likelihood.dequantise(x, model.data).",
            ItoflowWarning,
            stacklevel=4,
        )


def _blocks(x: Tensor, cond: Mapping[str, Tensor], size: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    for begin in range(0, len(x), size):
        part = slice(begin, begin + size)
        yield x[part], {name: value[part] for name, value in cond.items()}


def _integrators() -> list[str]:
    found = []
    for component in registry.registry().components("sampler"):
        try:
            if callable(getattr(component.load(), "integrate", None)):
                found.append(component.name)
        except ItoflowError:
            continue
    return found
