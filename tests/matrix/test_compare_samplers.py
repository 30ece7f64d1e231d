"""`itoflow compare-samplers` with everything installed: the default list on each kind of process, by a tight solve."""

from __future__ import annotations

import csv

import pytest
import torch

from itoflow import IncompatibleError, InputError, available, compose, create
from itoflow_train.compare_samplers import DEFAULTS, compare_samplers
from itoflow_train.targets import ORACLES


def rows(path):
    with (path / "samplers.csv").open() as file:
        return {(row["sampler"], row["nfe"]): row for row in csv.DictReader(file)}


def test_the_default_list_is_installed_and_deterministic():
    process = create("process", "vp")
    for name in DEFAULTS:
        assert name in available("sampler")
        assert not create("sampler", name).needs_score(process)


@pytest.mark.parametrize("process", ["vp", "ve", "linear"])
def test_the_default_list_on_an_oracle(process, tmp_path, capsys):
    arguments = ["mixture", "--process", process, "--nfe", "6,18", "--budget", "18", "--examples", "64"]
    assert compare_samplers([*arguments, "--out", str(tmp_path)]) == 0
    found = rows(tmp_path)
    assert {sampler for sampler, _ in found} == {*DEFAULTS, "reference"}
    assert float(found["reference", ""]["rmse"]) < 1e-6
    assert found["rk4", "18"]["evaluations"] == "17"  # four a step, one in the last
    assert found["heun", "18"]["evaluations"] == "17"
    assert float(found["auto", "18"]["median"]) < 2e-3
    assert float(found["auto", "18"]["rmse"]) < float(found["ddim", "18"]["rmse"]) / 5
    assert "budget 18: auto, the least median" in capsys.readouterr().out


def test_a_saved_model_is_compared_with_its_own_sampler_beside(tmp_path):
    model = compose(process="linear", objective="flow-matching", backbone="mlp", sampler="midpoint", data=(2,))
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    folder = model.save(tmp_path / "model")
    compare_samplers([str(folder), "--nfe", "9,65", "--examples", "16", "--out", str(tmp_path)])
    found = rows(tmp_path)
    assert {sampler for sampler, _ in found} == {*DEFAULTS, "the run's own", "reference"}
    for name in ("rk4", "heun", "euler", "the run's own"):
        assert float(found[name, "65"]["rmse"]) < float(found[name, "9"]["rmse"]) / 3


@pytest.mark.parametrize("name", ["ancestral", "sa-solver", "predictor-corrector", "churn:s_churn=5", "ddim:eta=0.5"])
def test_noise_is_refused(name, tmp_path):
    with pytest.raises(IncompatibleError, match="adds noise"):
        compare_samplers(["ring8", "--samplers", name, "--nfe", "8", "--out", str(tmp_path)])


def test_without_its_noise_a_stochastic_method_is_compared(tmp_path):
    samplers = "churn:s_churn=0,ddim:eta=0,sa-solver:strength=0,dopri5:rtol=1e-2:atol=1e-3"
    compare_samplers(["gmm10", "--samplers", samplers, "--nfe", "9,500", "--examples", "8", "--out", str(tmp_path)])
    found = rows(tmp_path)
    adaptive = [row for (sampler, _), row in found.items() if sampler.startswith("dopri5")]
    assert [row["nfe"] for row in adaptive] == ["500"]  # as many as its tolerance asks for
    assert 9 < int(adaptive[0]["evaluations"]) <= 500


def test_a_budget_that_no_sampler_meets(tmp_path):
    with pytest.raises(InputError, match="No sampler makes do with 2 evaluations; the fewest measured are 6"):
        compare_samplers(
            ["mixture", "--samplers", "unipc:order=3", "--nfe", "6", "--budget", "2", "--out", str(tmp_path)]
        )


def test_two_data_sets_have_no_noise_to_start_from(tmp_path):
    model = compose(process="sb", objective="flow-matching", backbone="mlp", data=(2,))
    model.save(tmp_path / "model")
    with pytest.raises(IncompatibleError, match="joins two data sets"):
        compare_samplers([str(tmp_path / "model"), "--out", str(tmp_path)])


def test_every_law_has_a_unit_scale():
    process = create("process", "linear")
    for law in ORACLES.values():
        assert 0.5 < law(process).data_std < 1.2
