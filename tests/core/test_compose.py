"""`compose`: parts in every form, and what cannot work together refused before a network is built."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import itoflow
from itoflow import DataSpec, GaussianProcess, GenerativeModel, registry
from itoflow.errors import (
    IncompatibleError,
    ItoflowError,
    ItoflowWarning,
    OptionError,
    SpecError,
    UnknownComponentError,
)

PARTS: dict[str, Any] = {
    "process": "decay",
    "objective": "denoise",
    "backbone": "linear",
    "sampler": "euler",
    "data": (2,),
}


def compose(**changes: Any) -> GenerativeModel:
    return itoflow.compose(**{**PARTS, **changes})


@pytest.mark.parametrize("part", ["process", "objective", "backbone", "sampler"])
def test_a_part_is_a_name_a_mapping_or_an_object(toy: ModuleType, part: str) -> None:
    spec = registry.resolve(part, PARTS[part])
    for form in (spec, {"name": PARTS[part]}, f"itoflow-toy:{PARTS[part]}", spec.to_dict()):
        assert getattr(compose(**{part: form}), part) == spec


def test_the_recipe_composes_the_same_model(toy: ModuleType) -> None:
    model = compose(process={"name": "decay", "rate": 4.0}, data=(2, 3), classes=4)
    assert compose(**model.recipe).recipe == model.recipe


@pytest.mark.parametrize("part", ["process", "objective", "backbone", "sampler"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("nowhere", UnknownComponentError, "No {part} is called 'nowhere'. Installed: "),
        ({"nam": "decay"}, OptionError, "given as a mapping needs 'name'"),
        (3, OptionError, "A {part} is a name, a mapping with 'name', or an object derived from itoflow."),
        (DataSpec(shape=(2,)), OptionError, r"Given: DataSpec\(.*Installed: "),
    ],
)
def test_a_wrong_part_is_refused(
    toy: ModuleType, part: str, value: object, error: type[ItoflowError], message: str
) -> None:
    with pytest.raises(error, match=message.format(part=part)):
        compose(**{part: value})


def test_a_part_of_another_kind_is_refused(toy: ModuleType) -> None:
    with pytest.raises(OptionError, match="A process is a name"):
        compose(process=toy.Euler())
    with pytest.raises(UnknownComponentError, match="'euler' is a sampler, not a process"):
        compose(process="euler")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": "decay", "rat": 1}, r"Decay: no option 'rat'. Did you mean 'rate'\?"),
        ({"name": "decay", "rate": 0}, r"Decay: rate: .*greater than 0 \(given: 0\)"),
    ],
)
def test_a_wrong_option_of_a_part_is_refused(toy: ModuleType, part: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        compose(process=part)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ((2, 3), {"classes": 4}),
        ([2, 3], {"classes": 4}),
        (torch.Size((2, 3)), {"classes": 4}),
        ({"shape": (2, 3), "classes": 4}, {}),
        ({"shape": [2, 3], "classes": 5}, {"classes": 4}),
        (DataSpec(shape=(2, 3), classes=4), {}),
        (DataSpec(shape=(2, 3)), {"classes": 4}),
    ],
)
def test_forms_of_the_data(toy: ModuleType, data: Any, options: dict[str, Any]) -> None:
    assert compose(data=data, **options).data == DataSpec(shape=(2, 3), classes=4)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (8, {}, r"data is a DataSpec, its fields as a mapping, or the shape.*Given: 8"),
        ("2", {}, "Given: '2'"),
        ((), {}, "shape: "),
        ((2, -1), {}, r"shape\.1: "),
        ({"classes": 3}, {}, "option 'shape' is required"),
        ((2,), {"clases": 3}, r"takes no 'clases'. Did you mean 'classes'\?"),
        ((2,), {"smapler": "heun"}, r"takes no 'smapler'. Did you mean 'sampler'\?"),
    ],
)
def test_wrong_data_is_refused(toy: ModuleType, data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        compose(data=data, **options)


def test_an_objective_says_which_process_it_needs_and_what_fits(toy: ModuleType) -> None:
    with pytest.raises(IncompatibleError) as caught:
        compose(process="brownian", sampler=None)
    assert str(caught.value) == (
        "Objective Denoise needs a process that is a GaussianProcess; Brownian is none. Processes that fit it: decay, "
        "forgetful, straight. Objectives that fit Brownian: match."
    )


@pytest.mark.parametrize("sampler", ["noisy", "jump"])
def test_a_sampler_says_which_process_it_needs_and_what_fits(toy: ModuleType, sampler: str) -> None:
    with pytest.raises(IncompatibleError) as caught:
        compose(process="brownian", objective="match", sampler=sampler)
    assert "needs a process that is a GaussianProcess; Brownian is none." in str(caught.value)
    assert "Samplers that fit Brownian: apart, euler, scaled." in str(caught.value)


def test_nothing_is_built_for_what_cannot_work(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy.Linear, "build", lambda *_: pytest.fail("a network was built"))
    with pytest.raises(IncompatibleError):
        compose(process="brownian", objective="match", sampler="jump")


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "edm"])
def test_a_process_that_is_not_gaussian_has_no_x0(toy: ModuleType, prediction: str) -> None:
    with pytest.raises(IncompatibleError, match=f"Prediction '{prediction}' needs a GaussianProcess"):
        compose(process="brownian", objective={"name": "match", "prediction": prediction}, sampler=None)


@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_t_max_is_lowered_visibly_where_the_prediction_is_singular(toy: ModuleType, prediction: str) -> None:
    with pytest.warns(ItoflowWarning, match=r"t_max of Straight is lowered from 1 to 0\.99") as caught:
        model = compose(process="straight", objective={"name": "denoise", "prediction": prediction})
    assert caught[0].filename == __file__
    assert 0.99 < model.process.t_max < 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compose(**model.recipe).process == model.process


@pytest.mark.parametrize("prediction", ["x0", "v", "velocity", "edm"])
def test_t_max_is_kept_where_it_can_be(toy: ModuleType, prediction: str) -> None:
    assert compose(process="straight", objective={"name": "denoise", "prediction": prediction}).process.t_max == 1


def test_a_prediction_that_is_singular_for_half_the_time_is_refused(toy: ModuleType) -> None:
    with pytest.raises(IncompatibleError, match=r"Prediction 'eps' determines no x0 on Forgetful.*Use another"):
        compose(process="forgetful", objective={"name": "denoise", "prediction": "eps"}, sampler=None)


class Unit(GaussianProcess):
    """sigma from 0.02 to 200 of a unit of the data."""

    unit: float

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.unit * 0.02 * 10 ** (4 * t)


@pytest.mark.parametrize("prediction", ["x0", "eps", "score", "v", "velocity", "edm"])
@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_what_is_solvable_does_not_depend_on_the_unit_of_the_data(
    toy: ModuleType, prediction: str, unit: float
) -> None:
    """Noise 200 times the data determines x0 in any unit; in absolute terms it is 2e6 times alpha in the last."""
    process = Unit(unit=unit)
    assert (
        compose(process=process, objective={"name": "denoise", "prediction": prediction}, std=unit).process == process
    )


@pytest.mark.parametrize(
    ("process", "std", "message"),
    [
        ({"name": "decay", "rate": 1.0}, 1.0, r"at t_max the data are still 0\.37 times as large as its prior"),
        ({"name": "decay", "rate": 7.0}, 0.05, r"at t_min noise 0\.21 times as large is left on them"),
        ("straight", 0.01, r"99\.0% of its time grid has more noise than data"),
        ("straight", 100.0, r"99\.0% of its time grid has less noise than data"),
    ],
)
def test_noise_that_does_not_suit_the_data_is_a_warning(
    toy: ModuleType, process: Any, std: float, message: str
) -> None:
    with pytest.warns(ItoflowWarning, match=rf"does not suit data of standard deviation {std:g} .*{message}") as caught:
        compose(process=process, objective={"name": "denoise", "prediction": "v"}, std=std)
    assert caught[0].filename == __file__


class Backwards(GaussianProcess):
    """The straight line in the time of a paper with data at 1."""

    t_min: float = 0.01

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 * t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t


@pytest.mark.parametrize("t_max", [0.99, 1.0])
def test_a_process_in_the_time_of_another_convention_is_refused(toy: ModuleType, t_max: float) -> None:
    with pytest.raises(
        SpecError, match=r"Backwards.* less noise on the data at t_max .* sigma from 0.99 to .*take 1 - t"
    ):
        compose(process=Backwards(t_max=t_max))


@pytest.mark.parametrize("given", [None, torch.nn.Linear, lambda x, t, cond: x])
def test_a_network_that_is_no_module_is_refused(toy: ModuleType, given: Any) -> None:
    backbone = type("Own", (toy.Linear,), {"__module__": __name__, "build": lambda self, data: given})()
    with pytest.raises(SpecError, match=r"Own\.build gives a torch\.nn\.Module\. Given: "):
        compose(backbone=backbone)


@pytest.mark.parametrize("given", [None, "eps"])
def test_a_parametrization_that_is_none_is_refused(toy: ModuleType, given: Any) -> None:
    members = {"__module__": __name__, "parametrization": lambda self, process, data: given}
    with pytest.raises(SpecError, match=r"Own\.parametrization gives an itoflow\.Parametrization\. Given: "):
        compose(objective=type("Own", (toy.Denoise,), members)())
