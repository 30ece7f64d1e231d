"""`GenerativeModel.sample`: the choice of the sampler, its randomness, and bad requests."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

import itoflow
from itoflow import GenerativeModel, Step
from itoflow.errors import IncompatibleError, InputError, OptionError, SpecError, UnknownComponentError


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "3", None, torch.tensor(2)])
def test_n_is_a_whole_number_of_at_least_one(model: GenerativeModel, n: Any) -> None:
    with pytest.raises(InputError, match=r"sample\(n\) needs a whole number of at least 1\. Given: "):
        model.sample(n)


@pytest.mark.parametrize("steps", [0, -3, 1.5, "many", True])
def test_steps_are_whole_and_at_least_one(model: GenerativeModel, steps: Any) -> None:
    with pytest.raises(OptionError, match="Noisy: steps: "):
        model.sample(2, steps=steps)


def test_steps_for_a_sampler_without_any(model: GenerativeModel) -> None:
    with pytest.raises(InputError, match="Sampler Jump has no number of steps"):
        model.sample(2, sampler="jump", steps=3)


def test_no_sampler_at_all(toy: ModuleType) -> None:
    bare = itoflow.compose(process="decay", objective="denoise", backbone="linear", data=(3,))
    with pytest.raises(InputError, match=r"composed without a sampler.*Installed: apart, euler, jump, noisy, scaled"):
        bare.sample(2)
    assert bare.sample(2, sampler="euler").shape == (2, 3)


def test_a_model_without_a_sampler_draws_by_the_default_one(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itoflow.model.DEFAULT_SAMPLER", "euler")
    bare = itoflow.compose(process="decay", objective="denoise", backbone="linear", data=(3,))
    drawn = [bare.sample(2, sampler=name, steps=3, generator=seeded(0)[0]) for name in (None, "euler")]
    assert torch.equal(*drawn)
    assert bare.recipe["sampler"] is None


@pytest.mark.parametrize("callback", [3, "Trajectory", [print], lambda: None, lambda step, x: None])
def test_a_callback_that_cannot_be_called_is_refused_before_any_work(model: GenerativeModel, callback: Any) -> None:
    with pytest.raises(InputError, match=r"callback is a function of one `itoflow\.loop\.Step`.*Trajectory"):
        model.sample(2, sampler="not even looked up", callback=callback)


def test_an_unknown_sampler(model: GenerativeModel) -> None:
    with pytest.raises(UnknownComponentError, match=r"Did you mean 'euler'\?"):
        model.sample(2, sampler="euller")


def test_a_sampler_that_the_process_does_not_fit(toy: ModuleType) -> None:
    model = itoflow.compose(process="brownian", objective="match", backbone="linear", data=(3,))
    with pytest.raises(IncompatibleError, match="Sampler Jump needs a process that is a GaussianProcess"):
        model.sample(2, sampler="jump")


def test_a_sampler_in_every_form_gives_the_same_samples(model: GenerativeModel, toy: ModuleType) -> None:
    forms: list[Any] = ["euler", {"name": "euler", "steps": 4}, toy.Euler(), "itoflow-toy:euler"]
    first, *others = [model.sample(2, sampler=form, generator=seeded(0)[0]) for form in forms]
    assert all(torch.equal(first, other) for other in others)


def test_steps_override_those_of_the_sampler(model: GenerativeModel) -> None:
    calls: list[Step] = []
    model.sample(2, steps=7, callback=calls.append)
    assert [step.index for step in calls] == list(range(7))


@pytest.mark.parametrize("sampler", ["noisy", "euler"])
def test_a_sample_with_its_own_generator_is_the_same_in_any_batch(model: GenerativeModel, sampler: str) -> None:
    together = model.sample(3, sampler=sampler, generator=seeded(1, 2, 3))
    apart = [model.sample(1, sampler=sampler, generator=seeded(seed)) for seed in (1, 2, 3)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-5, atol=1e-6)
    assert not torch.equal(together[0], together[1])


def test_the_default_generator_is_left_alone(model: GenerativeModel) -> None:
    before = torch.random.get_rng_state()
    model.sample(3, generator=seeded(0)[0])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("generator", "message"), [(seeded(1, 2), "2 generators for 3 samples"), (0, "From a seed")])
def test_a_wrong_generator(model: GenerativeModel, generator: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.sample(3, generator=generator)


def test_the_network_runs_in_evaluation_mode_and_no_mode_is_changed(model: GenerativeModel) -> None:
    model.train()
    model.field.net.dropout.eval()
    modes = [module.training for module in model.modules()]
    seen: list[bool] = []
    model.sample(2, callback=lambda step: seen.append(any(module.training for module in model.modules())))
    assert seen == [False] * 4
    assert [module.training for module in model.modules()] == modes


def test_modes_are_restored_after_an_error(model: GenerativeModel) -> None:
    def fail(step: Step) -> None:
        raise KeyError

    model.train()
    with pytest.raises(KeyError):
        model.sample(2, callback=fail)
    assert all(module.training for module in model.modules())


def test_samples_carry_no_gradient(model: GenerativeModel) -> None:
    assert not model.sample(2).requires_grad


@pytest.mark.parametrize("label", [2, [2, 2, 2], torch.tensor([2, 2, 2])])
def test_one_condition_serves_all_samples(toy: ModuleType, label: Any) -> None:
    parts: dict[str, Any] = {"process": "decay", "objective": "denoise", "backbone": "linear", "sampler": "euler"}
    torch.manual_seed(0)
    model = itoflow.compose(**parts, data=(3,), classes=4)
    expected = model.sample(3, {"class": torch.full((3,), 2)}, generator=seeded(0)[0])
    assert torch.equal(model.sample(3, {"class": label}, generator=seeded(0)[0]), expected)
    assert not torch.equal(model.sample(3, {"class": 1}, generator=seeded(0)[0]), expected)


def test_progress_is_shown_when_asked(model: GenerativeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.sample(2, steps=3)
    assert capsys.readouterr().err == ""
    model.sample(2, steps=3, progress=True)
    assert "sampling 3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "got"),
    [(lambda x: None, "NoneType"), (lambda x: x.numpy(), "ndarray"), (lambda x: x[0], r"shape \(3,\)")],
)
def test_a_sampler_that_gives_no_samples_is_named(
    model: GenerativeModel, toy: ModuleType, given: Any, got: str
) -> None:
    members = {"__module__": __name__, "__call__": lambda self, field, x, *_, **options: given(x)}
    own = type("Own", (toy.Euler,), members)()
    with pytest.raises(SpecError, match=rf"The samples of Own must be a tensor of shape \(2, 3\); it returned {got}"):
        model.sample(2, sampler=own)


@pytest.mark.parametrize("given", [None, [itoflow.Row(t=1.0)]])
def test_rows_that_are_no_table_are_refused(model: GenerativeModel, toy: ModuleType, given: Any) -> None:
    own = type("Own", (toy.Euler,), {"__module__": __name__, "table": lambda self, process: given})()
    with pytest.raises(SpecError, match=r"Own\.table gives an itoflow\.Table of rows\. Given: (NoneType|list)\."):
        model.sample(2, sampler=own)


def test_a_row_of_what_no_prediction_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"Row 1 of 1 .* has out='score'; it is one of eps, velocity, x0\."):
        itoflow.Table((itoflow.Row(t=1.0, out="score"),))  # type: ignore[arg-type]
