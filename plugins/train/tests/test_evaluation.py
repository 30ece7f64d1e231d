"""Bits per dimension against code lengths that are known, and the command `itoflow evaluate`."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch

from itoflow import DataSpec, InputError, ModelFileError
from itoflow_data import load_dataset
from itoflow_train.commands import evaluate as command
from itoflow_train.commands import sample, train
from itoflow_train.evaluation import Estimate, evaluate
from itoflow_train.run import load_values
from itoflow_train.values import Values

GAUSSIANISED = {"name": "gaussianised", "source": "digits"}


class Normal:
    """A stand-in for a model: N(0, s^2 I) exactly, or with noise of mean zero, as a Hutchinson estimate has it."""

    def __init__(self, scale=1.0, noise=0.0):
        self.scale, self.noise, self.sizes, self.probed = scale, noise, [], []

    def likelihood(self, x, cond=None, *, rtol, generator, divergence="exact", **options):
        self.sizes.append(len(x))
        self.probed.append(torch.rand((), generator=generator.clone_state()).item())
        law = torch.distributions.Normal(0.0, self.scale)
        found = law.log_prob(x.double()).flatten(1).sum(1)
        if divergence == "hutchinson":
            found = found + self.noise * torch.randn(len(x), generator=generator, dtype=torch.float64)
        return SimpleNamespace(log_prob=found + rtol, evaluations=7)

    def round_trip(self, x, cond=None, *, method, rtol):
        return torch.full_like(x, -rtol).index_fill(0, torch.tensor([0]), 0.0)


def test_a_normal_model_of_gaussianised_digits_has_the_code_length_of_its_histograms():
    """-mean log2 p_i(k) over values, without any noise: log p is constant in a cell. The solver's error is 0.9 rtol."""
    values = Values(load_dataset(GAUSSIANISED), dequantised=False)
    train = values.source.load("train")
    k = ((train.x + 1) * 8).round().long().flatten(1)
    expected = float(-values.map.mass.gather(0, k).log2().mean())
    found = evaluate(Normal(), values, train, draws=3, rtol=1e-9)
    assert found.bits.mean == pytest.approx(expected, abs=1e-6)
    assert found.weighted_bits.mean == pytest.approx(expected, abs=1e-6)
    assert found.draw_spread < 1e-6
    assert found.nats.mean == pytest.approx(-64 * (expected + math.log2(1 / 8)) * math.log(2), abs=1e-4)
    assert found.solver.mean == pytest.approx(0.9e-9 / 64 / math.log(2), rel=1e-2)
    assert (found.examples, found.draws, found.evaluations, found.probes) == (1437, 3, 7, None)


def test_affine_data_need_no_map_and_importance_weights_tighten_the_bound():
    values = Values(load_dataset("digits"), dequantised=True)
    test = values.source.load("test")
    found = evaluate(Normal(0.2), values, test[:64], draws=8)
    assert found.weighted_bits.mean < found.bits.mean
    generator = torch.Generator().manual_seed(0)
    noisy = torch.stack([values.noisy(test.x[:64].double(), generator) for _ in range(8)])
    log_prob = torch.distributions.Normal(0.0, 0.2).log_prob(noisy).flatten(2).sum(2) + 1e-3
    assert found.nats.mean == pytest.approx(float(log_prob.mean()), rel=1e-9)
    expected = -(log_prob.logsumexp(0) - math.log(8)).mean() / 64 / math.log(2) + 3
    assert found.weighted_bits.mean == pytest.approx(float(expected), rel=1e-9)


def test_probes_give_no_importance_weighted_bound_and_are_checked():
    values = Values(load_dataset(GAUSSIANISED), dequantised=False)
    found = evaluate(Normal(noise=2.0), values, values.source.load("test")[:40], draws=2, divergence="hutchinson")
    assert found.weighted_bits is None
    assert abs(found.probes.mean) < 5 * found.probes.error
    assert found.probes.error > 1e-3


def test_blocks_of_examples_and_probes_of_their_own_for_every_draw():
    """Three draws, then the checks: the same probes twice for the tolerance, as for the draw that they repeat."""
    values = Values(load_dataset(GAUSSIANISED), dequantised=False)
    model = Normal(noise=1.0)
    examples = values.source.load("test")[:40]
    evaluate(model, values, examples, draws=3, batch=16, check=16, divergence="hutchinson")
    assert model.sizes == [16, 16, 8] * 3 + [16] * 3
    assert len(set(model.probed[:9])) == 9
    assert model.probed[9:] == model.probed[:1] * 3


def test_blocks_do_not_change_the_figures():
    values = Values(load_dataset("digits"), dequantised=True)
    examples = values.source.load("test")[:21]
    one, many = (evaluate(Normal(), values, examples, draws=2, batch=batch) for batch in (1, 64))
    assert one.bits.mean == pytest.approx(many.bits.mean, rel=1e-12)
    assert one.weighted_bits.error == pytest.approx(many.weighted_bits.error, rel=1e-9)


def test_the_round_trip_is_of_the_checked_examples():
    values = Values(load_dataset("digits"), dequantised=True)
    found = evaluate(Normal(), values, values.source.load("test"), draws=1, check=4, rtol=0.1).round_trip
    assert found.largest == pytest.approx(0.1)
    assert found.rms == pytest.approx(0.1 * (3 / 4) ** 0.5)


def test_continuous_data_are_as_they_are():
    values = Values(load_dataset("two-moons"), dequantised=False)
    x = values.source.load("test")
    found = evaluate(Normal(), values, x, rtol=1e-9)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x.x.double()).sum(1)
    assert found.draws == 1
    assert found.nats.mean == pytest.approx(float(expected.mean()), abs=1e-6)
    assert found.nats.error == pytest.approx(float(expected.std()) / len(x) ** 0.5, rel=1e-6)


def test_values_go_there_and_back():
    values = Values(load_dataset(GAUSSIANISED), dequantised=False)
    assert values.data == load_dataset("digits").spec
    x = values.source.load("test").x
    y = values.noisy(x, torch.Generator().manual_seed(0))
    z = values.enter(y)
    assert z.dtype == torch.float32
    torch.testing.assert_close(values.leave(z), y, rtol=0, atol=2e-4)
    assert float((values.leave(z) - x).abs().max()) <= 1 / 16 + 2e-4


def test_one_value_has_no_standard_error():
    assert Estimate.of(torch.ones(1)).error is None
    assert Estimate.of(torch.ones(1)).show(".1f", ".1f") == "1.0"
    assert Estimate.of(torch.tensor([1.0, 3.0])) == Estimate(2.0, pytest.approx(1.0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("runs") / "density"
    changes = ["data.name=gaussianised", "data.source=digits", "report.samples=0", "sampler.steps=2"]
    assert train([recipe, *changes, "--out", str(path), "--cpu", "--quiet"]) == 0
    return path


OPTIONS = ["--method", "toy-integrator", "--limit", "6", "--check", "4"]


def test_command(trained, capsys):
    assert command([str(trained), *OPTIONS, "--draws", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((trained / "likelihood.json").read_text())
    assert list(figures) == ["test", "train"]
    assert figures["test"]["examples"] == 6
    assert 0 < figures["test"]["round_trip"]["rms"] <= figures["test"]["round_trip"]["largest"] < 1e-2
    assert figures["test"]["bits"]["mean"] > 0
    assert figures["test"]["sde_bits"]["mean"] > 0
    command([str(trained), *OPTIONS, "--draws", "2", "--exact", "--parts", "test"])
    out = capsys.readouterr().out
    assert "bits per dimension" in out
    assert "importance-weighted" in out


@pytest.mark.filterwarnings("error::itoflow.ItoflowWarning")
def test_levels_get_noise_though_training_saw_none(tmp_path, recipe, capsys):
    path = tmp_path / "plain"
    changes = ["training.steps=2", "report.samples=0", "report.grid=0", "sampler.steps=2"]
    assert train([recipe, *changes, "--out", str(path), "--cpu", "--quiet"]) == 0
    command([str(path), *OPTIONS, "--draws", "3", "--parts", "test", "--json"])
    figures = json.loads(capsys.readouterr().out)["test"]
    assert figures["draws"] == 3
    assert figures["draw_spread"] > 0


def test_samples_come_back_in_the_units_of_the_data(trained):
    assert sample([str(trained), "-n", "4"]) == 0
    assert load_values(trained).data == DataSpec(**load_dataset("digits").spec.to_dict())
    assert (trained / "samples-4.png").exists()


def test_figures_that_cannot_be_written_are_printed_first(trained, tmp_path, capsys):
    path = tmp_path / "copy"
    shutil.copytree(trained, path, ignore=shutil.ignore_patterns("likelihood.json"))
    (path / "likelihood.json").mkdir()
    with pytest.raises(InputError, match=r"Cannot write .*likelihood\.json: .* The figures are those above"):
        command([str(path), *OPTIONS, "--draws", "1", "--parts", "test"])
    assert "bits per dimension" in capsys.readouterr().out


def test_bad_calls(trained, tmp_path):
    for option in ("--limit", "--draws", "--check", "--batch"):
        with pytest.raises(InputError, match=f"{option} must be at least 1. Given: 0"):
            command([str(trained), option, "0"])
    with pytest.raises(InputError, match=r"at least 1\. Given: 0"):
        command([str(trained), *OPTIONS, "--probes", "0"])
    with pytest.raises(InputError, match=r"is no run folder"):
        command([str(tmp_path)])
    (tmp_path / "recipe.json").write_text((trained / "recipe.json").read_text())
    with pytest.raises(ModelFileError):
        command([str(tmp_path), *OPTIONS])
