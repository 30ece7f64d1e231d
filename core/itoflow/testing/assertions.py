"""How checks say what is wrong: which component, what was asked, what came, how large the allowance was.

Statistical checks compare with an allowance of `SIGMAS` standard errors: for normal errors one comparison in 1.7
million is then a false alarm. Seeds are fixed, so that a check which passes keeps passing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from itoflow import registry
from itoflow.errors import ItoflowError, SpecError
from itoflow.spec import Spec, encoded_options

SIGMAS = 5.0
"""Standard errors that a statistical comparison allows: false alarms 6e-7 each."""


def expect(condition: bool, message: str) -> None:
    """Raise AssertionError with that message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def expect_close(
    actual: Tensor, expected: Tensor, allowed: Tensor | float, what: str, *, at: Tensor | None = None, unit: str = "t"
) -> None:
    """|actual - expected| <= allowed everywhere, and neither is NaN; the message shows the worst place.

    Arguments:
        at: where each value was taken, of the shape of `actual`; `unit` names it.
    """
    actual, expected = actual.detach(), expected.detach()
    allowance = torch.as_tensor(allowed, dtype=torch.float64).detach().expand(actual.shape)
    error = (actual.to(torch.float64) - expected.to(torch.float64)).abs()
    excess = torch.where(error.isnan(), torch.inf, error / allowance.clamp(min=1e-300))
    if bool((excess <= 1).all()):
        return
    worst = int(excess.flatten().argmax())
    place = "" if at is None else f" at {unit} = {float(at.expand(actual.shape).flatten()[worst]):.6g}"
    raise AssertionError(
        f"{what}{place} is {float(actual.flatten()[worst]):.8g}; it should be "
        f"{float(expected.expand(actual.shape).flatten()[worst]):.8g} within {float(allowance.flatten()[worst]):.2g}."
    )


def expect_finite(value: Tensor, what: str, *, at: Tensor | None = None) -> None:
    """All values are finite; the message shows where not."""
    value = value.detach()
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        first = int(bad.flatten().nonzero()[0])
        place = "" if at is None else f" at t = {float(at.expand(value.shape).flatten()[first]):.9g}"
        raise AssertionError(f"{what} is {float(value.flatten()[first])}{place}; it must be finite.")


def expect_tensor(value: object, what: str) -> None:
    """What a component returned is a tensor."""
    expect(isinstance(value, Tensor), f"{what} returned a {type(value).__name__}; it must return a tensor.")


@contextmanager
def global_randomness_untouched(what: str) -> Iterator[None]:
    """Inside, nothing may draw from torch's default generator."""
    before = torch.random.get_rng_state()
    yield
    expect(
        torch.equal(before, torch.random.get_rng_state()),
        f"{what} drew from torch's default generator although a generator was given. Pass it on: "
        "itoflow.noise.normal(shape, like=x, generator=generator).",
    )


def check_options(component: Spec) -> None:
    """A recipe can hold the component: JSON and back gives an equal one, with the same hash.

    A component that no plugin registers (yet) is held to its options alone.
    """
    name = type(component).__name__
    try:
        data = component.to_dict()
    except SpecError:
        try:
            data = encoded_options(component)
        except SpecError as error:
            raise AssertionError(str(error)) from None
    try:
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"The options of {name} are not JSON: {error}.") from None
    read = json.loads(text)
    try:
        back = registry.resolve(component.kind, read) if "name" in read else type(component)(**read)
    except ItoflowError as error:
        raise AssertionError(f"{name} wrote {text}, and cannot read it back: {error}") from None
    expect(
        back == component, f"{name} wrote {text}, and reads it back as {back!r}, which is not equal to {component!r}."
    )
    expect(hash(back) == hash(component), f"Two equal {name} have different hashes.")
    expect(component.replace() == component, f"{name}.replace() without changes is not equal to the original.")


def sample_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of draws x (N, *S), float64."""
    flat = x.to(torch.float64).flatten(1)
    return flat.mean(0), flat.T.cov().reshape(flat.shape[1], flat.shape[1])


def expect_moments(
    x: Tensor, mean: Tensor, covariance: Tensor, what: str, *, relative: float, share: float = SIGMAS
) -> None:
    """Draws x (N, *S) have that mean (D,) and covariance (D, D).

    The allowance is `share` standard errors plus `relative` times the standard deviation (for means) or the product of
    two (for covariances), which is what the method's own error may be.
    """
    n = len(x)
    got_mean, got_covariance = sample_moments(x)
    std = covariance.diagonal().sqrt()
    scale = std[:, None] * std[None, :]
    expect_close(got_mean, mean, (relative + share / n**0.5) * std, f"The mean of {what}")
    spread = (scale.square() + covariance.square()).sqrt() / n**0.5  # standard error, exact for normal draws
    expect_close(got_covariance, covariance, relative * scale + share * spread, f"The covariance of {what}")
