"""Randomness from the generator that was given, and from no other.

A generator is one `torch.Generator` for the whole batch, or a sequence of them, one per sample: then each sample is
the same whatever the batch it is drawn in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from itoflow.errors import InputError

Generators = torch.Generator | Sequence[torch.Generator] | None


def normal(shape: Sequence[int], *, like: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise of `shape` (B, *S), with the dtype and device of `like`.

    Arguments:
        generator: one for the batch, or one per sample; None draws from torch's default generator. A generator on
            another device than `like` draws there, and the noise is moved.

    Raises:
        InputError: what was given is no generator, or the number of generators is not the batch size.
    """
    if generator is None:  # the same numbers, also under vmap, which fills nothing in place
        return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)
    out = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    check(generator, len(out))
    return fill(out, generator)


def fill(out: Tensor, generator: Generators = None) -> Tensor:
    """Fill `out` (B, *S) with standard normal noise; the generators have been checked."""
    if generator is None:
        return out.normal_()
    if isinstance(generator, torch.Generator):
        if generator.device == out.device:
            return out.normal_(generator=generator)
        return out.copy_(torch.randn(out.shape, generator=generator, dtype=out.dtype, device=generator.device))
    for sample, g in zip(out, generator, strict=True):
        fill(sample, g)
    return out


def uniform(size: int, *, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform numbers in (0, 1], float64, shape (size,), on the device of `like`.

    Raises:
        InputError: what was given is no generator.
    """
    check_one(generator)
    device = like.device if generator is None else generator.device
    return 1.0 - torch.rand(size, generator=generator, dtype=torch.float64, device=device).to(like.device)


def states(generator: Generators, like: Tensor) -> list[Tensor]:
    """The states of the generators that `normal` would draw from; `restore` winds them back."""
    return [g.get_state() for g in generators(generator, like)]


def restore(generator: Generators, like: Tensor, saved: Sequence[Tensor]) -> None:
    """Wind the generators back to `states`."""
    for g, state in zip(generators(generator, like), saved, strict=True):
        g.set_state(state)


def check(generator: Generators, size: int) -> None:
    """Refuse what cannot draw noise for `size` samples.

    Raises:
        InputError: what was given is no generator, or the number of generators is not the batch size.
    """
    given = generator if isinstance(generator, Sequence) else [generator]
    if generator is not None and not all(isinstance(g, torch.Generator) for g in given):
        raise InputError(
            f"generator is a torch.Generator, or one per sample. Given: {generator!r}. "
            "From a seed: torch.Generator().manual_seed(0)."
        )
    if isinstance(generator, Sequence) and len(generator) != size:
        raise InputError(f"{len(generator)} generators for {size} samples: give one, or one per sample.")


def check_one(generator: torch.Generator | None) -> None:
    """Refuse what is not one generator, or None.

    Raises:
        InputError: also of a sequence of generators.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(
            f"generator is a torch.Generator, one for the whole batch. Given: {type(generator).__name__}. From a seed: "
            "torch.Generator().manual_seed(0)."
        )


def generators(generator: Generators, like: Tensor) -> list[torch.Generator]:
    """The generators that `normal` would draw from, torch's default one for None."""
    if generator is None:
        return [torch.cuda.default_generators[like.device.index or 0] if like.is_cuda else torch.default_generator]
    return [generator] if isinstance(generator, torch.Generator) else list(generator)
