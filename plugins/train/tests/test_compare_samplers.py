"""`itoflow compare-samplers` on toys: a reference known in closed form, the floor, the choice, and bad input."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from PIL import Image

from itoflow import GaussianProcess, IncompatibleError, InputError, OptionError, Sampler, UnknownComponentError, create
from itoflow.testing.problems import Exploding, Preserving, Straight, Undeclared
from itoflow_train.commands import train
from itoflow_train.compare_samplers import compare_samplers
from itoflow_train.comparison import Error, compare, fitting, looser
from itoflow_train.named import part, split
from itoflow_train.run import load_run
from itoflow_train.targets import ModelTarget, OracleTarget

REFERENCE = ["--reference", "toy-sampler:steps=8000"]
TOY = ["gaussian", "--process", "toy-process:t_max=0.8:t_min=0.001", *REFERENCE]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("runs") / "digits"
    train([recipe, "--out", str(path), "--cpu", "--quiet"])
    return path


def rows(path):
    with (path / "samplers.csv").open() as file:
        return list(csv.DictReader(file))


def toy(steps, **options):
    return create("sampler", "toy-sampler", steps=steps, **options)


@pytest.mark.parametrize("process", [Preserving(), Exploding(), Straight()], ids=lambda p: type(p).__name__)
def test_the_reference_of_an_oracle_is_its_flow_to_the_data(process):
    """Gaussian data: y -> mean + C^(1/2) (C + s^2)^(-1/2) (y - mean); Euler in log s, extrapolated twice."""
    target = OracleTarget("gaussian", process, 20, 0)
    mean, covariance = target.field.moments()
    k = process.kernel(process.t_max)
    alpha, s = (k.alpha, k.sigma / k.alpha) if float(k.alpha) else (1e-5, torch.tensor(1e5, dtype=torch.float64))
    values, axes = torch.linalg.eigh(covariance)
    shrink = axes @ torch.diag((values / (values + s**2)).sqrt()) @ axes.T
    exact = mean + (target.x / alpha - mean) @ shrink
    found = [target.solve(toy(n))[0] for n in (1000, 2000, 4000)]
    solved = (8 * found[2] - 6 * found[1] + found[0]) / 3
    torch.testing.assert_close(solved, exact, rtol=0, atol=5e-5)


def test_errors_are_relative_to_the_spread_of_the_data():
    exact = 3 * torch.randn(1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    off = exact.clone()
    off[:10] += 30
    error = Error.of(off, exact)
    assert error.median == 0
    assert error.rmse == pytest.approx(1.0, rel=0.03)  # sqrt(10 / 1000) of 30, over 3


def test_the_floor_bounds_the_error_of_the_reference():
    """A first-order reference of 200 steps is off by about half of what 100 and 200 steps differ by, at most."""
    target = OracleTarget("gaussian", Preserving(), 50, 0)
    crude = compare(target, {"toy": toy(4)}, [50], toy(200))
    true = Error.of(target.solve(toy(200))[0], target.solve(toy(20_000))[0])
    assert 0.5 * crude.floor.rmse < true.rmse < 1.5 * crude.floor.rmse
    finer = compare(target, {"toy": toy(4)}, [50], toy(400))
    assert finer.floor.rmse == pytest.approx(crude.floor.rmse / 2, rel=0.1)


def test_a_target_is_solved_in_the_network_of_the_model_in_float64(trained):
    target = ModelTarget("digits", load_run(trained).train(), 8, 0)
    x, calls = target.solve(toy(300))
    assert (x.dtype, calls) == (torch.float64, 300)
    y, _ = target.run(toy(300))
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), x, rtol=1e-4, atol=1e-4)
    assert target.model.training  # as it was


def test_errors_fall_as_the_order_says(tmp_path, capsys):
    nfe = "10,20,40"
    assert compare_samplers([*TOY, "--samplers", "toy-sampler", "--nfe", nfe, "--out", str(tmp_path)]) == 0
    found = rows(tmp_path)
    assert [row["sampler"] for row in found] == ["toy-sampler"] * 3 + ["reference"]
    errors = [float(row["median"]) for row in found]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)
    assert json.loads(found[1]["options"])["steps"] == 20
    out = capsys.readouterr().out
    assert "best by median" in out
    assert "floor" in out
    with Image.open(tmp_path / "samplers-error.png") as drawn:
        assert drawn.size[0] > 1000


def test_a_run_is_its_own_target_and_the_choice_is_the_least(trained, capsys):
    samplers = ["--samplers", "toy-sampler,toy-sampler:denoise=false", '{"name": "toy-integrator", "denoise": true}']
    arguments = [str(trained), *REFERENCE, *samplers, "--nfe", "4,8", "--budget", "12", "--examples", "32"]
    assert compare_samplers(arguments) == 0
    out = capsys.readouterr().out
    found = [row for row in rows(trained) if row["sampler"] != "reference"]
    assert {row["nfe"] for row in found} == {"4", "8", "12"}
    least = min(found, key=lambda row: float(row["median"]))
    assert f"budget 12: {least['sampler']}, the least median" in out
    assert f"with {least['evaluations']} evaluations" in out
    assert compare_samplers(arguments) == 0
    assert capsys.readouterr().out == out  # the same noise


def test_a_number_of_evaluations_is_filled_as_far_as_it_goes():
    class Pairs(type(toy(1))):
        """Two rows a step, and never fewer than two steps."""

        def table(self, process):
            table = super().table(process)
            return type(table)(tuple(row for row in table.rows for _ in range(2)))

    process = Preserving()
    assert fitting(Pairs(), process, 7).steps == 3
    assert fitting(Pairs(), process, 8).steps == 4
    assert fitting(Pairs(), process, 1) is None
    target = OracleTarget("mixture", process, 4, 0)
    found = compare(target, {"pairs": Pairs(), "toy": toy(4)}, [1, 5], toy(100))
    assert found.rows["pairs"][1] is None
    assert found.rows["pairs"][5].evaluations == 4
    assert found.notes == ("pairs takes at least 2 evaluations: no error at 1.",)
    assert found.best(1)[0] == "toy"
    with pytest.raises(InputError, match="Sampler pairs takes at least 2 evaluations, and 1 is the most"):
        compare(target, {"pairs": Pairs()}, [1], toy(100))


def test_times_of_ones_own_are_left_as_they_are():
    sampler = toy(3, grid=[0.9, 0.5, 0.1])
    assert fitting(sampler, Preserving(), 2) is sampler
    found = compare(OracleTarget("mixture", Preserving(), 4, 0), {"own": sampler, "toy": toy(4)}, [2, 9], toy(100))
    assert found.rows["own"][2] is None
    assert found.rows["own"][9].evaluations == 3


def test_samplers_on_the_command_line():
    assert part("heun", "--x") == {"name": "heun"}
    assert part("itoflow-samplers:heun:steps=9:grid=karras", "--x") == {
        "name": "itoflow-samplers:heun",
        "steps": 9,
        "grid": "karras",
    }
    assert part("adams:grid=[1,0.5]", "--x") == {"name": "adams", "grid": [1, 0.5]}
    assert part('{"name": "adams"}', "--x") == {"name": "adams"}
    assert split(["a,b:grid=[1,0.5],c", '{"name": "a", "steps": 1}']) == [
        "a",
        "b:grid=[1,0.5]",
        "c",
        '{"name": "a", "steps": 1}',
    ]
    for wrong in ("{", "steps=3", "", "heun:steps=1:steps=2", "heun:name=adams"):
        with pytest.raises(InputError, match="--x"):
            part(wrong, "--x")


def test_bad_calls(trained, tmp_path):
    def fails(error, match, *arguments):
        with pytest.raises(error, match=match):
            compare_samplers([*arguments, "--out", str(tmp_path)])

    fails(InputError, r"'mixtur' is neither .* Did you mean 'mixture'\? .*ring8", "mixtur")
    fails(InputError, "neither a folder nor an exact law", str(tmp_path / "nowhere"))
    fails(InputError, "whose model has its own", str(trained), "--process", "toy-process")
    fails(UnknownComponentError, "toy-sampler", *TOY, "--samplers", "toy-samplr")
    fails(OptionError, "no option|colour", *TOY, "--samplers", "toy-sampler:colour=red")
    fails(InputError, "at least 1", *TOY, "--nfe", "0,6")
    fails(InputError, "at least 1", *TOY, "--budget", "-2")
    fails(InputError, "no list of whole numbers", *TOY, "--nfe", "6,ten")
    fails(InputError, "at least 2", *TOY, "--examples", "1")
    fails(InputError, "names none", *TOY, "--samplers", ",")
    with pytest.raises(InputError, match="Cannot write"):
        compare_samplers([*TOY, "--nfe", "2", "--out", str(trained / "recipe.json")])


def test_what_has_no_error_is_refused():
    class Noisy(type(toy(1))):
        """Noise in every row."""

        def needs_score(self, process):
            return True

    class Only(type(toy(1))):
        """Another kind of process."""

        requires = type("Other", (GaussianProcess,), {})

    class Endless(Sampler):
        """Neither steps nor a tolerance."""

        def __call__(self, field, x, cond=None, *, generator=None, callback=None):
            return x

    target = OracleTarget("mixture", Preserving(), 4, 0)
    with pytest.raises(IncompatibleError, match=r"Sampler n adds noise, .* no error"):
        compare(target, {"n": Noisy()}, [4], toy(100))
    with pytest.raises(IncompatibleError, match="Sampler o needs a Other; Preserving is none"):
        compare(target, {"o": Only()}, [4], toy(100))
    with pytest.raises(IncompatibleError, match="needs a GaussianProcess; Undeclared is none"):
        OracleTarget("mixture", Undeclared(), 4, 0)
    with pytest.raises(InputError, match="neither steps nor a tolerance"):
        looser(Endless())
