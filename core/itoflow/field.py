"""The field: what is known of the data at (x, t). The one seam between networks and everything that uses them.

At a time t of a Gaussian process, x = alpha x0 + sigma eps. A network's output is a second combination,

    y = a(t) x0 + b(t) eps,                                                                    (1)

and the two are solved for whatever is wanted: c x0 + d eps = m_x x + m_y y with

    m_x = (c b - d a) / D,   m_y = (d alpha - c sigma) / D,   D = alpha b - sigma a.           (2)

So x0, eps, the velocity (c, d) = (d_alpha, d_sigma) and the score = -eps / sigma are always consistent, and a new
prediction type is the pair (a, b) and nothing else.

References:
    Progressive Distillation for Fast Sampling of Diffusion Models (Salimans and Ho, 2022),
    https://arxiv.org/abs/2202.00512, appendix D, for v.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
    https://arxiv.org/abs/2206.00364, section 5, for edm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, cast

import torch
from annotated_types import Gt
from torch import Tensor, nn

from itoflow.errors import UndefinedError
from itoflow.interpolant import InterpolantKernel, InterpolantProcess
from itoflow.process import GaussianProcess, Kernel, PathSample, ProcessSpec, broadcast_time
from itoflow.spec import Spec

Conditions = Mapping[str, Tensor]
PredictionName = Literal["x0", "eps", "v", "velocity", "score", "edm"]
Member = Literal["x0", "eps", "velocity"]

_FEW = 1 << 16
"""Labels of a run, of all its samples, up to which they are written out: 256 KiB in float32."""


class Parametrization(Spec):
    """What the network's output means: y = a(t) x0 + b(t) eps.

    ========  =========================================  ==========================================
    name      (a, b)                                     source
    ========  =========================================  ==========================================
    x0        (1, 0)                                     the clean data
    eps       (0, 1)                                     the noise (Ho et al., 2020)
    v         (-sigma, alpha)                            Salimans and Ho, 2022
    velocity  (d_alpha, d_sigma)                         the probability-flow ODE, flow matching
    score     (0, -1/sigma)                              grad log p_t (Song et al., 2021)
    edm       (sigma/s, -alpha s) / sqrt(sigma^2 + alpha^2 s^2)   F of Karras et al., 2022, equation 7
    ========  =========================================  ==========================================

    with s the standard deviation of the data. The network's input is x divided by its own standard deviation
    sqrt(alpha^2 s^2 + sigma^2), which is 1 for a variance-preserving process and s = 1.
    """

    prediction: PredictionName
    """Name of the pair (a, b)."""
    data_std: Annotated[float, Gt(0)] = 1.0
    """Standard deviation s of the data, data units."""
    scale_input: bool = True
    """Divide the network's input by its standard deviation."""
    score: bool = True
    """Whether the score is known. False where the ends were coupled in training, so that E[eps | x_t] is no score. On
    an `InterpolantProcess`, whose velocity gives no score, true means a second output for it; see `NetworkField`."""

    def coefficients(self, k: Kernel) -> tuple[Tensor, Tensor]:
        """(a, b) at the times of the kernel, each of its shape."""
        zero, one, s = torch.zeros_like(k.alpha), torch.ones_like(k.alpha), self.data_std
        match self.prediction:
            case "x0":
                return one, zero
            case "eps":
                return zero, one
            case "v":
                return -k.sigma, k.alpha
            case "velocity":
                return k.d_alpha, k.d_sigma
            case "score":
                return zero, -1 / k.sigma
            case "edm":
                norm = (k.sigma.square() + (k.alpha * s).square()).sqrt()
                return k.sigma / (s * norm), -k.alpha * s / norm

    def input_scale(self, k: Kernel) -> Tensor:
        """What multiplies x before it enters the network: the kernel's shape, per data unit."""
        if not self.scale_input:
            return torch.ones_like(k.alpha)
        return (k.sigma.square() + (k.alpha * self.data_std).square()).rsqrt()

    def determinant(self, k: Kernel) -> Tensor:
        """D of equation (2); zero where the output determines neither x0 nor eps."""
        a, b = self.coefficients(k)
        return k.alpha * b - k.sigma * a


def solve(k: Kernel, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """(m_x, m_y) of equation (2): c x0 + d eps = m_x x + m_y y."""
    determinant = k.alpha * b - k.sigma * a
    return (c * b - d * a) / determinant, (d * k.alpha - c * k.sigma) / determinant


class Prediction(ABC):
    """What a field knows at (x, t): x0, eps, score and velocity, consistent, each computed when asked for.

    Each is (B, *S). x0 = E[x0 | x_t] and eps = E[eps | x_t] are in data units and standard deviations, score =
    grad log p_t(x) per data unit, velocity = dx/dt of the probability-flow ODE in data units per unit of t (forward
    time: it points from data to noise).

    Raises:
        UndefinedError: the process and the network do not determine what was asked.
    """

    @property
    def x0(self) -> Tensor:
        """E[x0 | x_t]."""
        raise self._undefined("x0")

    @property
    def eps(self) -> Tensor:
        """E[eps | x_t]."""
        raise self._undefined("eps")

    @property
    @abstractmethod
    def score(self) -> Tensor:
        """grad log p_t(x)."""

    @property
    @abstractmethod
    def velocity(self) -> Tensor:
        """dx/dt of the probability-flow ODE."""

    def _undefined(self, what: str) -> UndefinedError:
        return UndefinedError(
            f"{type(self).__name__} does not determine {what}: x0 and eps exist only for Gaussian processes, "
            "x_t = alpha x0 + sigma eps; a velocity alone, or one learnt with coupled ends, gives no score. Use a "
            "sampler and an objective that need only what is known."
        )


class GaussianPrediction(Prediction):
    """Equations (1) and (2).

    Arguments:
        x: (B, *S).
        output: y, (B, *S): what the network gave, in its own meaning.
        kernel: at the times of x, float64, broadcastable against it.
        a, b: the meaning of y, float64, broadcastable against it.
        coupled: x0 and eps were not drawn independently, so that -eps / sigma is no score.
    """

    def __init__(
        self, x: Tensor, output: Tensor, kernel: Kernel, a: Tensor, b: Tensor, *, coupled: bool = False
    ) -> None:
        self.x, self.output, self.kernel, self.a, self.b, self.coupled = x, output, kernel, a, b, coupled

    def combine(self, c: Tensor, d: Tensor) -> Tensor:
        """c x0 + d eps, for coefficients that broadcast against x: (B, *S)."""
        m_x, m_y = solve(self.kernel, self.a, self.b, c, d)
        return m_x.to(self.x.dtype) * self.x + m_y.to(self.x.dtype) * self.output

    @property
    def x0(self) -> Tensor:
        """E[x0 | x_t]."""
        return self.combine(torch.ones_like(self.a), torch.zeros_like(self.a))

    @property
    def eps(self) -> Tensor:
        """E[eps | x_t]."""
        return self.combine(torch.zeros_like(self.a), torch.ones_like(self.a))

    @property
    def score(self) -> Tensor:
        """-eps / sigma.

        Raises:
            UndefinedError: x0 and eps were coupled in training.
        """
        if self.coupled:
            raise self._undefined("the score")
        return self.combine(torch.zeros_like(self.a), -1 / self.kernel.sigma)

    @property
    def velocity(self) -> Tensor:
        """d_alpha x0 + d_sigma eps."""
        return self.combine(self.kernel.d_alpha, self.kernel.d_sigma)

    def error(self, sample: PathSample, c: Tensor, d: Tensor, weight: Tensor) -> Tensor:
        """weight |c x0 + d eps - (c x0_hat + d eps_hat)|^2 / D, (B,), for the x0 and eps that made x_t.

        Computed where the network's output lives, as weight m_y^2 |y - (a x0 + b eps)|^2 / D with the m_y of equation
        (2): only the product of weight and m_y^2, taken in float64, need be finite.

        Arguments:
            c, d: broadcastable against x, float64.
            weight: (B,), float64.
        """
        dtype = self.output.dtype
        target = self.a.to(dtype) * sample.x0 + self.b.to(dtype) * cast(Tensor, sample.eps)
        squared = (self.output - target).square().flatten(1).mean(1)
        m_y = solve(self.kernel, self.a, self.b, c, d)[1]
        return (weight * m_y.square().reshape(sample.t.shape)).to(dtype) * squared


class DynamicsPrediction(Prediction):
    """For a process that is not Gaussian: velocity and score from each other, velocity = f - g^2/2 score.

    Arguments:
        process: gives f and g.
        x, t: (B, *S) and () or (B,).
        velocity, score: what the network gave; at least one.
    """

    def __init__(
        self, process: ProcessSpec, x: Tensor, t: Tensor, *, velocity: Tensor | None = None, score: Tensor | None = None
    ) -> None:
        self._process, self._x, self._t = process, x, t
        self._velocity, self._score = velocity, score

    def _half_g2(self) -> Tensor:
        return broadcast_time(self._process.diffusion(self._t).square() / 2, self._x.ndim).to(self._x.dtype)

    @property
    def velocity(self) -> Tensor:
        """As given, or f - g^2/2 score."""
        if self._velocity is not None:
            return self._velocity
        return self._process.drift(self._x, self._t) - self._half_g2() * self.score

    @property
    def score(self) -> Tensor:
        """As given, or (f - velocity) / (g^2/2) where g > 0.

        Raises:
            UndefinedError: g = 0, an ODE, whose velocity determines no score.
        """
        if self._score is not None:
            return self._score
        half_g2 = self._half_g2()
        if self._velocity is None or not bool((half_g2 > 0).all()):
            raise self._undefined("the score")
        return (self._process.drift(self._x, self._t) - self._velocity) / half_g2


class InterpolantPrediction(Prediction):
    """For an `InterpolantProcess`: the velocity, or its two parts.

    Arguments:
        velocity: E[d_alpha x_0 + d_beta x_1 + d_gamma z | x_t]; without the last term if `noise` is given.
        noise: E[z | x_t]; None where it was not learnt.
        kernel: at the times of x.
    """

    def __init__(self, velocity: Tensor, noise: Tensor | None, kernel: InterpolantKernel) -> None:
        self.output, self.noise, self.kernel = velocity, noise, kernel

    @property
    def velocity(self) -> Tensor:
        """The first output, and d_gamma E[z | x_t] where it is given apart."""
        if self.noise is None:
            return self.output
        return self.output + self.kernel.d_gamma.to(self.output.dtype) * self.noise

    @property
    def score(self) -> Tensor:
        """-E[z | x_t] / gamma.

        Raises:
            UndefinedError: only a velocity was learnt.
        """
        if self.noise is None:
            raise self._undefined("the score")
        return -self.noise / self.kernel.gamma.to(self.noise.dtype)


class Request(Protocol):
    """What one evaluation of a plan gives: `Row` of a sampler's table is one."""

    @property
    def t(self) -> float:
        """Time of the evaluation."""

    @property
    def out(self) -> Member:
        """The member of the prediction."""

    @property
    def eta(self) -> float:
        """Strength: for `velocity`, gives velocity - eta^2/2 score."""


@dataclass(frozen=True)
class Solved:
    """What a sequence of requests asks of the network, with all that depends on time alone computed once.

    Request i at x is h = m_x[i] x + m_y[i] network(scale[i] x, labels[i]), so that a caller who scales and adds anyway
    can fold it.

    Arguments:
        labels: what the network is told of each request: its time as the network knows it, a tensor (B,), or, for a
            field that solves nothing itself, the request with its time.
        scale, m_x, m_y: one number per request, computed in float64.
    """

    labels: Sequence[Any]
    scale: Sequence[float]
    m_x: Sequence[float]
    m_y: Sequence[float]


Evaluate = Callable[[Tensor, Any], Tensor]
"""(x, label) -> (B, *S), one call of the network."""


@dataclass(frozen=True)
class Plan:
    """`Solved` requests and the network that answers them."""

    network: Evaluate
    solved: Solved

    def __call__(self, i: int, x: Tensor) -> Tensor:
        """What requests[i] asks for at x (B, *S)."""
        scale, m_x, m_y = self.solved.scale[i], self.solved.m_x[i], self.solved.m_y[i]
        y = self.network(x if scale == 1 else x * scale, self.solved.labels[i])
        h = y if m_y == 1 else y * m_y
        return h if m_x == 0 else torch.add(h, x, alpha=m_x)


class Field(nn.Module, ABC):
    """What samplers, objectives and likelihoods see of a model: (x, t, cond) -> Prediction.

    Exact oracles, guidance and the like are fields, or wrap one; whoever uses a field never knows.

    Arguments:
        process: the process whose p_t the field describes.
        data_std: standard deviation of the data at t = 0, data units.
    """

    def __init__(self, process: ProcessSpec, data_std: float = 1.0) -> None:
        super().__init__()
        self.process = process
        self.data_std = data_std

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Prediction:
        """The prediction at x (B, *S), data units, and t () or (B,)."""

    def plan(self, requests: Sequence[Request], like: Tensor, cond: Conditions | None = None) -> Plan:
        """A plan of evaluations, called as plan(i, x) for requests[i] at x.

        Arguments:
            requests: times and members, in the order of evaluation.
            like: a tensor with the shape, dtype and device that x will have.
            cond: conditions of the whole run.
        """
        return Plan(self.evaluator(like, cond), self.solved(requests, like))

    def evaluator(self, like: Tensor, cond: Conditions | None = None) -> Evaluate:
        """One evaluation under these conditions, as the labels of `solved` ask for it."""

        def evaluate(x: Tensor, label: tuple[Request, Tensor]) -> Tensor:
            request, t = label
            prediction = self(x, t, cond)
            value: Tensor = getattr(prediction, request.out)
            if request.out == "velocity" and request.eta:
                value = torch.add(value, prediction.score, alpha=-0.5 * request.eta**2)
            return value

        return evaluate

    def solved(self, requests: Sequence[Request], like: Tensor) -> Solved:
        """The requests, for x like this."""
        times = torch.tensor([r.t for r in requests], dtype=torch.float64, device=like.device).unbind()
        zeros, ones = [0.0] * len(requests), [1.0] * len(requests)
        return Solved(list(zip(requests, times, strict=True)), ones, zeros, ones)

    def solved_by(self, like: Tensor) -> Hashable:
        """What `solved` depends on besides the requests: equal for two fields that solve all alike, None if unknown."""
        return None


class NetworkField(Field):
    """A network read as a field.

    The network is called as net(x, t, cond): x (B, *S) scaled to unit variance, in the network's own dtype; t (B,)
    in [0, 1], `process.network_time`; cond a mapping. For a Gaussian process its output is y of equation (1). For
    another process its output is the score or the velocity, as the parametrization says.

    An `InterpolantProcess` with `parametrization.score` has two outputs, E[d_alpha x_0 + d_beta x_1 | x_t] and E[z |
    x_t]: the network is one for data twice as large along the first axis, is given [x, x], and its output is cut in
    two. So any backbone can have two heads.

    Arguments:
        net: the network.
        process: its process.
        parametrization: what the output means.
    """

    def __init__(self, net: nn.Module, process: ProcessSpec, parametrization: Parametrization) -> None:
        super().__init__(process, parametrization.data_std)
        self.net = net
        self.parametrization = parametrization

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Prediction:
        """One call of the network."""
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        dtype, times = self._dtype(x), self.process.network_time(t).expand(x.shape[0])
        if isinstance(self.process, InterpolantProcess):
            return self._interpolant(self.process.kernel(t, x.ndim), x, times.to(dtype), cond or {})
        if not isinstance(self.process, GaussianProcess):
            output = self.net(x.to(dtype), times.to(dtype), cond or {}).to(x.dtype)
            given = {"velocity" if self.parametrization.prediction == "velocity" else "score": output}
            return DynamicsPrediction(self.process, x, t, **given)
        kernel = self.process.kernel(t, x.ndim)
        scaled = (x * self.parametrization.input_scale(kernel).to(x.dtype)).to(dtype)
        output = self.net(scaled, times.to(dtype), cond or {}).to(x.dtype)
        a, b = self.parametrization.coefficients(kernel)
        return GaussianPrediction(x, output, kernel, a, b, coupled=not self.parametrization.score)

    def _interpolant(self, k: InterpolantKernel, x: Tensor, times: Tensor, cond: Conditions) -> InterpolantPrediction:
        ends = (k.alpha.square() + k.beta.square()) * self.data_std**2
        scaled = (x * (ends + k.gamma.square()).rsqrt().to(x.dtype)).to(times.dtype)
        if not self.parametrization.score:
            return InterpolantPrediction(self.net(scaled, times, cond).to(x.dtype), None, k)
        velocity, noise = self.net(torch.cat([scaled, scaled], 1), times, cond).to(x.dtype).chunk(2, 1)
        return InterpolantPrediction(velocity, noise, k)

    def evaluator(self, like: Tensor, cond: Conditions | None = None) -> Evaluate:
        """The network as it is, or between conversions to its own dtype."""
        if not isinstance(self.process, GaussianProcess):
            return super().evaluator(like, cond)
        net, conditions, dtype = self.net, cond or {}, self._dtype(like)

        def evaluate(x: Tensor, label: Tensor) -> Tensor:
            y: Tensor = net(x, label, conditions)
            return y

        def converted(x: Tensor, label: Tensor) -> Tensor:
            return evaluate(x.to(dtype), label).to(x.dtype)

        return evaluate if dtype == like.dtype else converted

    def solved(self, requests: Sequence[Request], like: Tensor) -> Solved:
        """The solve of equation (2) folded to two numbers per request, computed once in float64."""
        if not isinstance(self.process, GaussianProcess):
            return super().solved(requests, like)
        if not self.parametrization.score and any(r.eta for r in requests):
            raise UndefinedError("These ends were coupled in training, so that no score is known. Use a strength of 0.")
        t = torch.tensor([r.t for r in requests], dtype=torch.float64)
        k = self.process.kernel(t)
        a, b = self.parametrization.coefficients(k)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        eta = torch.tensor([r.eta for r in requests], dtype=torch.float64)
        langevin = torch.where(eta > 0, eta.square() / (2 * k.sigma), zero)
        members = {"x0": (one, zero), "eps": (zero, one), "velocity": (k.d_alpha, k.d_sigma + langevin)}
        wanted = {r.out for r in requests}
        solved = {name: [m.tolist() for m in solve(k, a, b, *members[name])] for name in wanted}
        m_x, m_y = ([solved[r.out][which][i] for i, r in enumerate(requests)] for which in (0, 1))
        times = self.process.network_time(t).to(device=like.device, dtype=self._dtype(like))
        labels = times[:, None].expand(len(requests), like.shape[0])
        if labels.numel() <= _FEW:  # a network reads them a little faster if they lie one beside the other
            labels = labels.contiguous()
        return Solved(labels.unbind(), self.parametrization.input_scale(k).tolist(), m_x, m_y)

    def solved_by(self, like: Tensor) -> Hashable:
        """Process, parametrization, and what labels look like."""
        if not isinstance(self.process, GaussianProcess):
            return None
        return self.process, self.parametrization, self._dtype(like), like.device, len(like)

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The network's own floating dtype."""
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), x.dtype)
