r"""Flow matching: regress the velocity of the paths that join the two ends.

Draw t and a path x_t through x0 and its partner, as the coupling says. Its velocity and the loss are

    u = dx_t/dt,   loss = w(t) |u - u_hat(x_t, t)|^2 / D,                                            (1)

and E[u | x_t] is the velocity that carries p_0 to p_1. On a Gaussian process u = d_alpha x0 + d_sigma eps, and (1) is
computed in the network's own output, whatever that means, as in denoising score matching: since

    |u - u_hat| = |d_alpha - alpha d_sigma / sigma| |x0 - x0_hat|,

the two are one regression up to weight, and share their weightings: w = 1 is `velocity`. On a process between two data
sets u = d_alpha x_0 + d_beta x_1 + d_gamma z; with a score, the network has two outputs and

    loss = (|d_alpha x_0 + d_beta x_1 - first|^2 + |z - second|^2) / D.                              (2)

Here data is at t = 0. As taught, with data at tau = 1 and tau = 1 - t, the velocity is -u; the loss is the same.

With a coupling other than `independent` on a Gaussian process the velocity is right but E[eps | x_t] / sigma is no
score: `compose` refuses samplers that add noise.

References:
    Flow Matching for Generative Modeling (Lipman et al., 2023), https://arxiv.org/abs/2210.02747, equations 9 and 14.
    Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport (Tong et al., 2024),
    https://arxiv.org/abs/2302.00482, section 3.
    Stochastic Interpolants: A Unifying Framework for Flows and Diffusions (Albergo et al., 2023),
    https://arxiv.org/abs/2303.08797, equations 2.13 and 2.16, for (2).
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024),
    https://arxiv.org/abs/2403.03206, section 3.1, for logit-normal times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

import torch
from annotated_types import Gt
from torch import Tensor

from itoflow import (
    DataSpec,
    Field,
    GaussianProcess,
    IncompatibleError,
    InterpolantProcess,
    Parametrization,
    PathObjective,
    PathSample,
    ProcessSpec,
)
from itoflow.noise import normal
from itoflow.parametrization import PredictionName
from itoflow.prediction import GaussianPrediction, InterpolantPrediction
from itoflow_flow.coupling import Coupling
from itoflow_flow.independent import Independent
from itoflow_score.times import logit_normal_times, uniform_times, unit_numbers
from itoflow_score.weightings import WeightingName, x0_weight


class FlowMatching(PathObjective):
    """E_t w(t) |u - u_hat(x_t, t)|^2 / D, equation (1)."""

    prediction: PredictionName = "velocity"
    """What the network's output means; between two data sets, the velocity."""
    weighting: WeightingName = "velocity"
    """w(t) by its name as a weighting of the error of x0; see `itoflow_score.weightings`. `velocity` is w = 1."""
    gamma: Annotated[float, Gt(0)] = 5.0
    """gamma of the weightings min-snr and soft-min-snr."""
    times: Literal["uniform", "logit-normal"] = "uniform"
    """How t is drawn. `logit-normal` looks at the middle more often, which is not corrected for."""
    logit_mean: float = 0.0
    """Mean of log(s / (1 - s)) for logit-normal times, s = (t - t_min) / (t_max - t_min), t itself on a straight line;
    as taught, tau = 1 - t, its sign is opposite."""
    logit_std: Annotated[float, Gt(0)] = 1.0
    """Standard deviation of log(s / (1 - s)) for logit-normal times."""
    stratified: bool = False
    """Cover the times evenly within each batch."""
    coupling: Coupling = Independent()
    """Which noise, or which example of the far end, goes with which data."""
    score: bool = False
    """Between two data sets, learn the score as well, by a second output: equation (2)."""

    def parametrization(self, process: ProcessSpec, data: DataSpec) -> Parametrization:
        """What the output means, with the data's standard deviation.

        Raises:
            IncompatibleError: an option that this kind of process cannot have.
        """
        if isinstance(process, InterpolantProcess):
            self._check_interpolant(process)
            return Parametrization(prediction="velocity", data_std=data.std, score=self.score)
        if self.score:
            raise IncompatibleError(
                f"FlowMatching(score=True) adds a second output, which {type(process).__name__} does not need: its "
                "velocity gives the score. Use score=False."
            )
        known = isinstance(self.coupling, Independent)
        return Parametrization(prediction=self.prediction, data_std=data.std, score=known)

    def _check_interpolant(self, process: InterpolantProcess) -> None:
        for option in ("prediction", "weighting"):
            if getattr(self, option) != "velocity":
                raise IncompatibleError(
                    f"FlowMatching({option}={getattr(self, option)!r}) needs a GaussianProcess; "
                    f"{type(process).__name__} joins two data sets. Use {option}='velocity'."
                )
        if self.score:
            process.diffusion(
                torch.tensor((process.t_min + process.t_max) / 2, dtype=torch.float64)
            )  # refuses gamma = 0

    def __call__(
        self,
        field: Field,
        x0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        x1: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of each example, (B,).

        Arguments:
            x1: (M, *S), the far end of an `InterpolantProcess`.
        """
        t = self.draw_times(field.process, x0, generator)
        return self.loss_at(field, self.draw_path(field.process, x0, t, cond, x1=x1, generator=generator), cond)

    def loss_at(self, field: Field, sample: PathSample, cond: Mapping[str, Tensor] | None = None) -> Tensor:
        """The loss of given paths at given times, (B,), equations (1) and (2): no randomness."""
        process, prediction = field.process, field(sample.x, sample.t, cond)
        if isinstance(process, InterpolantProcess):
            return _interpolant_loss(process, cast(InterpolantPrediction, prediction), sample)
        known = cast(GaussianPrediction, prediction)
        k = known.kernel
        if self.weighting == "velocity":
            return known.error(sample, k.d_alpha, k.d_sigma, torch.ones_like(sample.t))
        gaussian = cast(GaussianProcess, process)
        weight = x0_weight(
            self.weighting, gaussian, sample.t, gaussian.kernel(sample.t), gamma=self.gamma, data_std=field.data_std
        )
        return known.error(sample, torch.ones_like(k.alpha), torch.zeros_like(k.alpha), weight)

    def draw_times(self, process: ProcessSpec, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """t (B,) for a batch `like` (B, *S), float64, in [t_min, t_max]."""
        u = unit_numbers(len(like), like, generator, stratified=self.stratified)
        if self.times == "logit-normal":
            return logit_normal_times(process, u, mean=self.logit_mean, std=self.logit_std)
        return uniform_times(process, u)

    def draw_path(
        self,
        process: ProcessSpec,
        x0: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        *,
        x1: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PathSample:
        """x_t of the path through each x0 and its partner: noise, or one of x1 for an `InterpolantProcess`."""
        if isinstance(process, InterpolantProcess):
            far = cast(Tensor, x1)
            return process.path(x0, far[self.coupling(x0, far, cond, generator=generator)], t, generator=generator)
        gaussian = cast(GaussianProcess, process)
        eps = normal(x0.shape, like=x0, generator=generator)
        return gaussian.path(x0, eps[self.coupling(x0, eps * gaussian.prior_std(), cond, generator=generator)], t)


def _interpolant_loss(process: InterpolantProcess, prediction: InterpolantPrediction, sample: PathSample) -> Tensor:
    u = process.path_velocity(sample)
    if prediction.noise is None:
        return (prediction.output - u).square().flatten(1).mean(1)
    z = cast(Tensor, sample.eps)
    ends = u - prediction.kernel.d_gamma.to(u.dtype) * z
    errors = (prediction.output - ends).square() + (prediction.noise - z).square()
    return errors.flatten(1).mean(1)
