"""`GenerativeModel.loss`: one number per example, and bad batches refused with what would fit."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

import itoflow
from itoflow import GenerativeModel
from itoflow.errors import InputError, SpecError


@pytest.fixture
def conditional(toy: ModuleType) -> GenerativeModel:
    return itoflow.compose(process="decay", objective="denoise", backbone="linear", data=(3,), classes=4, vector=2)


COND: dict[str, Any] = {"class": [0, 1, 2, 3, 0], "vector": torch.zeros(5, 2)}


def test_one_loss_per_example_with_gradients(conditional: GenerativeModel) -> None:
    loss = conditional.loss(torch.randn(5, 3), COND)
    assert loss.shape == (5,)
    loss.mean().backward()
    assert all(p.grad is not None for p in conditional.parameters())


def test_the_generator_decides(conditional: GenerativeModel) -> None:
    conditional.eval()
    x, before = torch.ones(5, 3), torch.random.get_rng_state()
    losses = [conditional.loss(x, COND, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_calling_the_model_is_its_loss(conditional: GenerativeModel) -> None:
    conditional.eval()
    x = torch.ones(5, 3)
    given = [f(x, COND, generator=torch.Generator().manual_seed(0)) for f in (conditional, conditional.loss)]
    assert torch.equal(*given)


@pytest.mark.parametrize(
    ("x", "cond", "message"),
    [
        (torch.zeros(5, 4), COND, r"x must have shape \(B, 3\)\. Given: \(5, 4\)"),
        (torch.zeros(3), COND, r"Given: \(3,\)"),
        (torch.zeros(5, 3, dtype=torch.int64), COND, "x must be floating"),
        (torch.full((5, 3), torch.nan), COND, "15 values that are NaN or infinite"),
        (torch.zeros(0, 3), {"class": torch.zeros(0, dtype=torch.int64)}, "at least one example"),
        (torch.zeros(5, 3), None, r"missing: \['class', 'vector'\]"),
        (torch.zeros(5, 3), {**COND, "text": "cat"}, r"unexpected: \['text'\]"),
        (torch.zeros(5, 3), {**COND, "class": [0, 1, 2, 3, 4]}, r"in \[0, 4\)\. Given: 0 to 4"),
        (torch.zeros(4, 3), COND, "must be one integer or 4 of them"),
    ],
)
def test_a_wrong_batch_is_refused(conditional: GenerativeModel, x: torch.Tensor, cond: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        conditional.loss(x, cond)


def test_conditions_of_a_model_without_any_are_refused(model: GenerativeModel) -> None:
    with pytest.raises(InputError, match="conditions are none; missing: none, unexpected: "):
        model.loss(torch.zeros(5, 3), {"class": 1})


@pytest.mark.parametrize(
    ("change", "got"),
    [(lambda loss: None, "NoneType"), (lambda loss: (loss, {}), "tuple"), (lambda loss: loss.mean(), r"shape \(\)")],
)
def test_an_objective_that_gives_no_loss_per_example_is_named(toy: ModuleType, change: Any, got: str) -> None:
    def call(self: Any, *given: Any, **options: Any) -> Any:
        return change(toy.Denoise.__call__(self, *given, **options))

    own = type("Own", (toy.Denoise,), {"__module__": __name__, "__call__": call})()
    model = itoflow.compose(process="decay", objective=own, backbone="linear", data=(3,))
    with pytest.raises(SpecError, match=rf"The loss of Own must be a tensor of shape \(4,\); it returned {got}"):
        model.loss(torch.randn(4, 3))


@pytest.mark.parametrize("columns", [slice(0, 1), 0])
def test_an_output_that_would_be_broadcast_is_refused(model: GenerativeModel, columns: Any) -> None:
    whole = type(model.field.net).forward
    own = type("Own", (type(model.field.net),), {"forward": lambda self, *given: whole(self, *given)[:, columns]})
    model.field.net.__class__ = own
    with pytest.raises(SpecError, match=r"Own must return x's shape \(3, 3\); it returned shape \(3"):
        model.loss(torch.randn(3, 3))


@pytest.mark.parametrize("conditional", [False, True])
def test_gradients_per_example_by_vmap(toy: ModuleType, conditional: bool) -> None:
    extra = {"vector": 2} if conditional else {}
    model = itoflow.compose(process="decay", objective="denoise", backbone="linear", data=(3,), **extra).eval()
    weights = {name: value.detach() for name, value in model.named_parameters()}
    x = torch.randn(4, 3)
    cond = {"vector": torch.randn(4, 2)} if conditional else {}

    def loss(weights: Any, x: torch.Tensor, cond: Any) -> torch.Tensor:
        given = {name: value[None] for name, value in cond.items()}
        out: torch.Tensor = torch.func.functional_call(model, weights, (x[None], given)).sum()
        return out

    def gradients(randomness: str) -> Any:
        torch.manual_seed(0)
        return torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness=randomness)(weights, x, cond)

    shared = gradients("same")
    for i in range(4):
        torch.manual_seed(0)
        alone = torch.func.grad(loss)(weights, x[i], {name: value[i] for name, value in cond.items()})
        for name, value in alone.items():
            torch.testing.assert_close(shared[name][i], value)
    assert not torch.equal(gradients("different")["field.net.matrix.weight"], shared["field.net.matrix.weight"])


def test_a_bad_value_is_still_seen_inside_a_gradient_of_torch_func(model: GenerativeModel) -> None:
    x = torch.full((2, 3), torch.nan)
    with pytest.raises(InputError, match="6 values that are NaN"):
        torch.func.grad(lambda x: model.loss(x).sum())(x)
