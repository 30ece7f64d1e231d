"""Randomness comes from the generator that was given, and from no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from itoflow import noise
from itoflow.errors import InputError

LIKE = torch.empty(0, dtype=torch.float64)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("generator", [seeded(0)[0], seeded(1, 2, 3)], ids=["one", "each"])
def test_leaves_the_default_generator_alone(generator: noise.Generators) -> None:
    before = torch.random.get_rng_state()
    noise.normal((3, 2), like=LIKE, generator=generator)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("seeds", [None, (0,), (1, 2, 3)])
def test_keeps_shape_and_dtype(dtype: torch.dtype, seeds: tuple[int, ...] | None) -> None:
    generator = None if seeds is None else seeded(*seeds)[0] if len(seeds) == 1 else seeded(*seeds)
    drawn = noise.normal((3, 2, 4), like=torch.empty(0, dtype=dtype), generator=generator)
    assert (drawn.shape, drawn.dtype) == ((3, 2, 4), dtype)


def test_a_sample_with_its_own_generator_is_the_same_in_any_batch() -> None:
    def draw(*seeds: int) -> torch.Tensor:
        generators = seeded(*seeds)
        return torch.stack([noise.normal((len(seeds), 2), like=LIKE, generator=generators) for _ in range(3)], 1)

    together = draw(5, 6, 7)
    assert torch.equal(together, torch.cat([draw(5), draw(6, 7)]))
    assert torch.equal(together, draw(7, 5, 6)[[1, 2, 0]])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (seeded(1, 2), "2 generators for 3 samples: give one, or one per sample"),
        ([], "0 generators for 3 samples"),
        (0, r"Given: 0\. From a seed: torch.Generator\(\).manual_seed\(0\)"),
        ([1, 2, 3], "generator is a torch.Generator, or one per sample"),
    ],
)
def test_refuses_what_is_no_generator_per_sample(generator: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        noise.normal((3, 2), like=LIKE, generator=generator)


@pytest.mark.parametrize("generator", [3, "seed", [torch.Generator()]])
def test_uniform_refuses_what_is_no_generator(generator: Any) -> None:
    with pytest.raises(InputError, match=r"generator is a torch\.Generator"):
        noise.uniform(3, like=torch.empty(0), generator=generator)


def test_uniform_is_never_zero() -> None:
    drawn = noise.uniform(10_000, like=torch.empty(0), generator=seeded(0)[0])
    assert drawn.dtype == torch.float64
    assert 0 < float(drawn.min()) < 1e-3
    assert 0.999 < float(drawn.max()) <= 1


@pytest.mark.parametrize("seeds", [(), (0,), (1, 2, 3)], ids=["default", "one", "each"])
def test_restore_winds_back(seeds: tuple[int, ...]) -> None:
    generator = None if not seeds else seeded(*seeds)[0] if len(seeds) == 1 else seeded(*seeds)
    saved = noise.states(generator, LIKE)
    first = noise.normal((3, 2), like=LIKE, generator=generator)
    assert not torch.equal(first, noise.normal((3, 2), like=LIKE, generator=generator))
    noise.restore(generator, LIKE, saved)
    assert torch.equal(first, noise.normal((3, 2), like=LIKE, generator=generator))
