"""The field: what is known of the data at (x, t). The one seam between networks and everything that uses them.

A field gives a `Prediction` at (x, t). For a run along times known ahead it solves equation (2) of
`itoflow.parametrization` for all of them at once, in float64, so that an evaluation is the network and one addition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from itoflow.errors import SpecError, UndefinedError
from itoflow.interpolant import InterpolantKernel, InterpolantProcess
from itoflow.parametrization import Parametrization, solve
from itoflow.prediction import DynamicsPrediction, GaussianPrediction, InterpolantPrediction, Prediction
from itoflow.process import GaussianProcess, ProcessSpec

Conditions = Mapping[str, Tensor]
Member = Literal["x0", "eps", "velocity"]

_FEW = 1 << 16
"""Up to so many time labels (calls times samples) lie one beside the other; more stay expanded views. In float32 these
are 256 KiB."""


class Request(Protocol):
    """What one evaluation gives: `Row` of a sampler's table is one."""

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


class Field(nn.Module, ABC):
    """What samplers, objectives and likelihoods see of a model: (x, t, cond) -> Prediction.

    Exact oracles, guidance and the like are fields, or wrap one; whoever uses a field never knows.

    Arguments:
        process: the process whose p_t the field describes.
        data_std: standard deviation of the data at t = 0, data units.
        predicts_noise: whether it is learned as noise (or the score), so that the error of x0 grows as sigma / alpha.
    """

    def __init__(self, process: ProcessSpec, data_std: float = 1.0, predicts_noise: bool = False) -> None:
        super().__init__()
        self.process = process
        self.data_std = data_std
        self.predicts_noise = predicts_noise

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Prediction:
        """The prediction at x (B, *S), data units, and t () or (B,)."""

    def evaluator(self, like: Tensor, cond: Conditions | None = None) -> Evaluate:
        """One evaluation under these conditions, as the labels of `solved` ask for it.

        Arguments:
            like: a tensor with the shape, dtype and device that x will have.
            cond: conditions of the whole run.
        """

        def evaluate(x: Tensor, label: tuple[Request, Tensor]) -> Tensor:
            request, t = label
            prediction = self(x, t, cond)
            value: Tensor = getattr(prediction, request.out)
            if request.out == "velocity" and request.eta:
                value = torch.add(value, prediction.score, alpha=-0.5 * request.eta**2)
            return value

        return evaluate

    def solved(self, requests: Sequence[Request], like: Tensor) -> Solved:
        """The requests, in the order of evaluation, for x like this."""
        times = torch.tensor([r.t for r in requests], dtype=torch.float64, device=like.device).unbind()
        zeros, ones = [0.0] * len(requests), [1.0] * len(requests)
        return Solved(list(zip(requests, times, strict=True)), ones, zeros, ones)

    def solved_by(self, like: Tensor) -> Hashable:
        """What `solved` depends on besides the requests: equal for two fields that solve all alike, None if unknown."""
        return None


class NetworkField(Field):
    """A network read as a field.

    The network is called as net(x, t, cond): x (B, *S) in the network's own dtype, scaled to unit variance unless the
    parametrization says no; t (B,) in [0, 1], `process.network_time`, in that dtype, or float32 where it is of half
    precision; cond a mapping. For a Gaussian process its output is y of equation (1). For a process given by drift and
    diffusion alone, which say nothing of its variance, x is not scaled, and the output is the score or the velocity, as
    the parametrization says.

    An `InterpolantProcess` with `parametrization.score` has two outputs, E[d_alpha x_0 + d_beta x_1 | x_t] and E[z |
    x_t]: the network is one for data twice as large along the first axis, is given [x, x], and its output is cut in
    two. So any backbone can have two heads.

    A subclass may override `forward`, say for guidance; samplers then call it like that of any other field.

    Arguments:
        net: the network.
        process: its process.
        parametrization: what the output means.

    Raises:
        SpecError: when called as a field, the network returns no tensor of the shape of its input.
    """

    def __init__(self, net: nn.Module, process: ProcessSpec, parametrization: Parametrization) -> None:
        super().__init__(process, parametrization.data_std, parametrization.prediction in ("eps", "score"))
        self.net = net
        self.parametrization = parametrization

    def forward(self, x: Tensor, t: Tensor, cond: Conditions | None = None) -> Prediction:
        """One call of the network."""
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
        dtype, times = self._dtype(x), self.process.network_time(t).expand(x.shape[0]).to(self._time_dtype(x))
        if isinstance(self.process, InterpolantProcess):
            return self._interpolant(self.process.kernel(t, x.ndim), x, times, cond or {})
        if not isinstance(self.process, GaussianProcess):
            output = self._call(x.to(dtype), times, cond or {}).to(x.dtype)
            given = {"velocity" if self.parametrization.prediction == "velocity" else "score": output}
            return DynamicsPrediction(self.process, x, t, **given)
        kernel = self.process.kernel(t, x.ndim)
        scaled = (x * self.parametrization.input_scale(kernel).to(x.dtype)).to(dtype)
        output = self._call(scaled, times, cond or {}).to(x.dtype)
        a, b = self.parametrization.coefficients(kernel)
        return GaussianPrediction(x, output, kernel, a, b, coupled=not self.parametrization.score)

    def _interpolant(self, k: InterpolantKernel, x: Tensor, times: Tensor, cond: Conditions) -> InterpolantPrediction:
        ends = (k.alpha.square() + k.beta.square()) * self.data_std**2
        scaled = (x * self.parametrization.scale_of(ends + k.gamma.square()).to(x.dtype)).to(self._dtype(x))
        if not self.parametrization.score:
            return InterpolantPrediction(self._call(scaled, times, cond).to(x.dtype), None, k)
        velocity, noise = self._call(torch.cat([scaled, scaled], 1), times, cond).to(x.dtype).chunk(2, 1)
        return InterpolantPrediction(velocity, noise, k)

    def _call(self, x: Tensor, times: Tensor, cond: Conditions) -> Tensor:
        """The network's output, (B, *S); any other shape would be broadcast, silently.

        The `evaluator` does not look, as a sampler calls it at each step.
        """
        y: Any = self.net(x, times, cond)
        if isinstance(y, Tensor) and y.shape == x.shape:
            return y
        raise SpecError(f"{type(self.net).__name__} must return x's shape {tuple(x.shape)}; it returned {kind_of(y)}.")

    def evaluator(self, like: Tensor, cond: Conditions | None = None) -> Evaluate:
        """The network as it is, or between conversions to its own dtype."""
        if not self._solvable:
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
        if not self._solvable:
            return super().solved(requests, like)
        assert isinstance(self.process, GaussianProcess)
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
        times = self.process.network_time(t).to(device=like.device, dtype=self._time_dtype(like))
        labels = times[:, None].expand(len(requests), like.shape[0])
        if labels.numel() <= _FEW:  # a network reads them a little faster if they lie one beside the other
            labels = labels.contiguous()
        return Solved(labels.unbind(), self.parametrization.input_scale(k).tolist(), m_x, m_y)

    def solved_by(self, like: Tensor) -> Hashable:
        """Process, parametrization, and what labels look like."""
        if not self._solvable:
            return None
        return self.process, self.parametrization, self._dtype(like), like.device, len(like)

    @property
    def _solvable(self) -> bool:
        """Whether equation (2) says what `forward` does."""
        return isinstance(self.process, GaussianProcess) and type(self).forward is NetworkField.forward

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The network's own floating dtype."""
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), x.dtype)

    def _time_dtype(self, x: Tensor) -> torch.dtype:
        """That of the times that it is told: half precision would not tell those of a run apart."""
        return torch.promote_types(self._dtype(x), torch.float32)


def kind_of(value: object) -> str:
    """What a component returned, for an error: the shape of a tensor, or the type of anything else."""
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
