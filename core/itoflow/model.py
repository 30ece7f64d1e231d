"""The model that `compose` builds: it trains, samples, and gives likelihoods."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from itoflow import likelihood as likelihoods
from itoflow import registry
from itoflow.backbone import Backbone, DataSpec
from itoflow.callbacks import Progress, together
from itoflow.compatibility import check_sampler
from itoflow.errors import (
    InputError,
    OptionError,
    SpecError,
    UnknownComponentError,
    did_you_mean,
    listing,
)
from itoflow.field import Field, NetworkField, kind_of
from itoflow.interpolant import InterpolantProcess
from itoflow.likelihood import Likelihood, LikelihoodOptions, ODEOptions
from itoflow.loop import Callback
from itoflow.noise import Generators
from itoflow.objective import Objective, PathObjective
from itoflow.process import ProcessSpec
from itoflow.sampler import Sampler

DEFAULT_SAMPLER = "auto"
"""The registered name of the sampler that a model without one draws by."""

Part = str | Mapping[str, Any]


class GenerativeModel(nn.Module):
    """A process, an objective, a network and a sampler, composed; see `compose`.

    Attributes:
        process, objective, backbone, sampler, data: the specs; sampler may be None, and be set to another, or its name.
        field: the network read as a `Field`; may be set to one that wraps it.
        parametrization: what the network's output means.
    """

    def __init__(
        self,
        process: ProcessSpec,
        objective: Objective,
        backbone: Backbone,
        sampler: Sampler | None,
        data: DataSpec,
        field: NetworkField,
    ) -> None:
        super().__init__()
        self.process, self.objective, self.backbone = process, objective, backbone
        self.sampler, self.data, self.parametrization = sampler, data, field.parametrization
        self.field: Field = field

    def loss(
        self,
        x: Tensor,
        cond: Mapping[str, Any] | None = None,
        *,
        x1: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The objective on a batch of clean data: (B,), one loss per example.

        Arguments:
            x: (B, *S), data units, finite.
            cond: `class` and `vector` where the data spec has them.
            x1: (M, *S), draws of the far end, for a process between two data sets and no other; M may differ from B.
            generator: draws times and noise.

        Raises:
            InputError: x, x1 or cond is not what the process and the data spec need.
            SpecError: the objective or the network returns another shape than it must.
        """
        self.data.check(x)
        if not len(x):
            raise InputError("loss needs at least one example; this batch is empty.")
        conditions = self.data.conditions(cond, len(x), x.device)
        if not isinstance(self.process, InterpolantProcess):
            if x1 is not None:
                raise InputError(f"x1 is for a process between two data sets; {type(self.process).__name__} is none.")
            loss = self.objective(self.field, x, conditions, generator=generator)
            return _shaped("The loss of", self.objective, loss, x.shape[:1])
        if x1 is None:
            raise InputError(
                f"{type(self.process).__name__} joins two data sets: pass the far end too, loss(x, x1=...)."
            )
        self.data.check(x1, "x1")
        if not len(x1):
            raise InputError("loss needs at least one draw of the far end; x1 is empty.")
        loss = cast(PathObjective, self.objective)(self.field, x, conditions, x1=x1, generator=generator)
        return _shaped("The loss of", self.objective, loss, x.shape[:1])

    def forward(
        self,
        x: Tensor,
        cond: Mapping[str, Any] | None = None,
        *,
        x1: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`loss`, so that wrappers which intercept the call of a module (data parallelism) see it."""
        return self.loss(x, cond, x1=x1, generator=generator)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._like().device

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        cond: Mapping[str, Any] | None = None,
        *,
        x: Tensor | None = None,
        sampler: Part | Sampler | None = None,
        steps: int | None = None,
        generator: Generators = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Tensor:
        """n samples, (n, *S), data units, on the model's device; the network runs in evaluation mode.

        Arguments:
            n: how many; taken from x where that is given.
            cond: conditions; one value is used for all samples, n values one each.
            x: where to start, (n, *S): the far end of a process between two data sets, which needs it; for any other
                process x at t_max, or at the first of the sampler's own times, in place of a draw from the prior.
            sampler: a name, a mapping with `name`, or a sampler; None is the model's own, or else the one named
                `auto` among those installed.
            steps: overrides the sampler's number of steps.
            generator: one, or one per sample, which makes each sample independent of its batch.
            callback: called with a `Step` after every network call, e.g. `itoflow.callbacks.Trajectory()`.
            progress: show the calls made on standard error.

        Raises:
            InputError: n below 1, x missing or not what the data spec says, conditions that do not fit, a callback that
                cannot be called, steps for a sampler without steps, times that start below t_max without an x, or no
                sampler at all and none installed as `auto`.
            OptionError: steps below 1.
            IncompatibleError: the sampler cannot run on this process, or needs a score where none is known.
            NumericalError: values became non-finite.
            SpecError: the sampler returns another shape than x's.
        """
        bar = Progress() if progress else None
        n, like, watch = self._count(n, x), self._like(), together(callback, bar)
        chosen = self._sampler(sampler, steps)
        first, t_max = chosen.starts_at(self.process), self.process.t_max
        if x is None and first < t_max:
            raise InputError(
                f"The sampler's own times start at {first:g}, and the prior is x at t_max = {t_max:g}. Start the times "
                "there, or pass x at the first of them, sample(x=...)."
            )
        conditions = self.data.conditions(cond, n, like.device)
        with evaluating(self), bar or nullcontext():
            start = self._start(n, x, like, generator)
            end = chosen(self.field, start, conditions, generator=generator, callback=watch)
            return _shaped("The samples of", chosen, end, start.shape)

    def log_prob(
        self, x: Tensor, cond: Mapping[str, Any] | None = None, **options: Unpack[LikelihoodOptions]
    ) -> Tensor:
        """log p(x) of x (B, *S) in data units: (B,), nats, float64; see `itoflow.likelihood`.

        Example:
            model.log_prob(x, divergence="hutchinson", probes=4, rtol=1e-4, generator=g)
        """
        return self.likelihood(x, cond, **options).log_prob

    def likelihood(
        self, x: Tensor, cond: Mapping[str, Any] | None = None, **options: Unpack[LikelihoodOptions]
    ) -> Likelihood:
        """log p(x) with its terms, the latents and the number of evaluations; the network runs in evaluation mode.

        Arguments:
            options: of `itoflow.likelihood.LikelihoodOptions`: method, rtol, atol, divergence, probes, generator, ...

        Raises:
            InputError: x or cond is not what the data spec says, or an option is out of range.
            OptionError: there is no such option.
            what `itoflow.likelihood.likelihood` raises.
        """
        _refuse_unknown("likelihood", options, LikelihoodOptions)
        conditions = self._checked(x, cond)
        likelihoods.warn_if_discrete(x, self.data)
        with evaluating(self):
            return likelihoods.likelihood(self.field, x, conditions, **options)

    def encode(self, x: Tensor, cond: Mapping[str, Any] | None = None, **options: Unpack[ODEOptions]) -> Tensor:
        """x at t_max, (B, *S), float64, of data x (B, *S), along the probability-flow ODE."""
        _refuse_unknown("encode", options, ODEOptions)
        conditions = self._checked(x, cond)
        with evaluating(self):
            return likelihoods.encode(self.field, x, conditions, **options)

    def decode(self, latent: Tensor, cond: Mapping[str, Any] | None = None, **options: Unpack[ODEOptions]) -> Tensor:
        """The inverse of `encode`: data (B, *S), float64, from x at t_max."""
        _refuse_unknown("decode", options, ODEOptions)
        conditions = self._checked(latent, cond)
        with evaluating(self):
            return likelihoods.decode(self.field, latent, conditions, **options)

    def round_trip(self, x: Tensor, cond: Mapping[str, Any] | None = None, **options: Unpack[ODEOptions]) -> Tensor:
        """decode(encode(x)) - x, (B, *S), data units, float64: the solver's error on the way to the prior and back."""
        return self.decode(self.encode(x, cond, **options), cond, **options) - x

    def _checked(self, x: Tensor, cond: Mapping[str, Any] | None) -> dict[str, Tensor]:
        self.data.check(x)
        return self.data.conditions(cond, len(x), x.device)

    def _count(self, n: int | None, x: Tensor | None) -> int:
        if x is not None:
            self.data.check(x)
            if n is not None and n != len(x):
                raise InputError(f"sample(n={n!r}, x=...) got {len(x)} starting points; leave n out.")
            n = len(x)
        if x is None and isinstance(self.process, InterpolantProcess):
            raise InputError(f"{type(self.process).__name__} starts from data at its far end: sample(x=x1).")
        if type(n) is not int or n < 1:
            raise InputError(f"sample(n) needs a whole number of at least 1. Given: {n!r}.")
        return n

    def _start(self, n: int, x: Tensor | None, like: Tensor, generator: Generators) -> Tensor:
        """x at t_max."""
        if x is None:
            return self.process.prior((n, *self.data.shape), like=like, generator=generator)
        x = x.to(like)
        return self.process.depart(x, generator=generator) if isinstance(self.process, InterpolantProcess) else x

    def _sampler(self, sampler: Part | Sampler | None, steps: int | None) -> Sampler:
        named = next(part for part in (sampler, self.sampler, DEFAULT_SAMPLER) if part is not None)
        try:
            chosen = cast(Sampler, registry.resolve("sampler", named))
        except UnknownComponentError:
            if named != DEFAULT_SAMPLER:
                raise
            raise InputError(
                "This model was composed without a sampler, and none is installed as 'auto'. "
                f"Name one: sample(n, sampler=...). Installed: {listing(registry.available('sampler'))}."
            ) from None
        if steps is not None:
            chosen = chosen.with_steps(steps)
        check_sampler(chosen, self.process, self.parametrization)
        return chosen

    def _like(self) -> Tensor:
        """An empty tensor with the device of the weights and a dtype that sampling is accurate in."""
        weight = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
        return torch.empty(0, dtype=dtype, device=weight.device)

    @property
    def recipe(self) -> dict[str, Any]:
        """The specs as JSON data, such that `compose(**recipe)` builds the same model anew.

        Raises:
            SpecError: a component is registered by no plugin, so that no recipe can name it.
        """
        parts = {
            "process": self.process,
            "objective": self.objective,
            "backbone": self.backbone,
            "sampler": self.sampler,
        }
        named = {kind: None if spec is None else registry.resolve(kind, spec).to_dict() for kind, spec in parts.items()}
        return {**named, "data": self.data.to_dict()}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write recipe, weights and manifest to a new folder; see `itoflow.storage.save`."""
        from itoflow import storage

        return storage.save(self, path, overwrite=overwrite)


def _shaped(what: str, part: Objective | Sampler, value: Any, shape: torch.Size) -> Tensor:
    """What a component returned, if it is a tensor of that shape."""
    if isinstance(value, Tensor) and value.shape == shape:
        return value
    raise SpecError(
        f"{what} {type(part).__name__} must be a tensor of shape {tuple(shape)}; it returned {kind_of(value)}."
    )


def _refuse_unknown(call: str, options: Mapping[str, Any], known: type) -> None:
    """Refuse an option that the typed dictionary `known` does not have."""
    names = known.__annotations__
    for name in options:
        if name not in names:
            raise OptionError(f"{call} has no option {name!r}.{did_you_mean(name, names)} Options: {listing(names)}.")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module and its parts are in evaluation mode; outside, as they were.

    Of the whole module: one that several threads share is to be in evaluation mode already.
    """
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
