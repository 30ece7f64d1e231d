from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from itertools import islice
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from annotated_types import Gt

import itoflow
from itoflow import DataSpec, InputError, OptionError, SpecError, UnknownComponentError, registry
from itoflow_data import (
    DataSource,
    Examples,
    Split,
    from_levels,
    load_dataset,
    split_index,
    split_indices,
    to_levels,
)

LOADED_AT_ONCE = ["checkerboard", "digits", "eight-gaussians", "gaussian-mixture", "swiss-roll", "two-moons"]
"""The data sets whose options all have defaults."""


class Interval(DataSource):
    """The example of the module's docstring."""

    n: Annotated[int, Gt(0)] = 1000

    @property
    def spec(self) -> DataSpec:
        return DataSpec(shape=(1,), std=3**-0.5)

    def load(self, split: Split) -> Examples:
        x = np.random.default_rng(split_index(split)).uniform(-1, 1, size=(self.n, 1))
        return Examples(torch.from_numpy(x.astype(np.float32)))


class Stranger(itoflow.Spec):
    kind = "dataset"


@pytest.fixture(params=[*LOADED_AT_ONCE, "own"])
def source(request: pytest.FixtureRequest) -> DataSource:
    return Interval() if request.param == "own" else load_dataset(request.param)


def examples(n: int) -> Examples:
    return Examples(torch.arange(n, dtype=torch.float32)[:, None], {"class": torch.arange(n)})


def drawn(batches: Any, count: int) -> list[int]:
    return [int(value) for batch in islice(batches, count) for value in batch.x[:, 0]]


def test_every_source_is_what_its_spec_says(source: DataSource) -> None:
    spec, train, test = source.spec, source.load("train"), source.load("test")
    for part in (train, test):
        part.check(spec)
        assert spec.low - 1e-6 <= float(part.x.min()) <= float(part.x.max()) <= spec.high + 1e-6
    assert float(train.x.double().std()) == pytest.approx(spec.std, rel=0.03)
    assert not {x.numpy().tobytes() for x in train.x} & {x.numpy().tobytes() for x in test.x}


def test_every_source_is_deterministic(source: DataSource) -> None:
    source.load("test")
    again = source.replace()
    assert torch.equal(source.load("train").x, again.load("train").x)


def test_every_source_refuses_another_part(source: DataSource) -> None:
    with pytest.raises(InputError, match=r"'validation'.*train, test"):
        source.load("validation")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOADED_AT_ONCE)
def test_round_trip_of_options(name: str) -> None:
    source = load_dataset(name)
    data = source.to_dict()
    assert data["name"] == f"itoflow-data:{name}"
    assert load_dataset(data) == source


def test_a_field_of_type_source_takes_a_name() -> None:
    class Recipe(itoflow.Spec):
        data: DataSource

    assert Recipe(data="digits") == Recipe(data=load_dataset("digits"))  # type: ignore[arg-type]


def test_load_dataset_takes_an_object() -> None:
    source = Interval()
    assert load_dataset(source) is source


def test_load_dataset_refuses() -> None:
    with pytest.raises(UnknownComponentError, match="Did you mean 'digits'"):
        load_dataset("digit")
    with pytest.raises(OptionError, match=r"a name, a mapping with 'name', or an itoflow_data.DataSource.*digits"):
        load_dataset(Stranger())  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"no option 'label'\. Did you mean 'labels'"):
        load_dataset({"name": "digits", "label": True})


def test_load_dataset_refuses_a_registered_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        @itoflow.hookimpl
        def itoflow_datasets(self) -> list[itoflow.Registration]:
            return [itoflow.Registration("odd", "stranger:Stranger", "no source")]

    module = type(sys)("stranger")
    module.Stranger, module.plugin = Stranger, Plugin()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stranger", module)
    found = registry.Registry.discover([EntryPoint("odd", "stranger:plugin", "itoflow")])
    monkeypatch.setattr(registry, "_current", found)
    with pytest.raises(SpecError, match="Stranger, registered as a dataset for 'odd', does not derive"):
        load_dataset("odd")


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, itoflow_data.plugin as p; p.itoflow_datasets();"
        "heavy = {'torch', 'numpy', 'sklearn', 'PIL', 'pydantic'} & set(sys.modules); sys.exit(str(heavy or '') or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_import_no_scikit_learn() -> None:
    code = "import sys, itoflow_data.digits as d; d.Digits().spec; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lazy_names_are_those_that_type_checkers_see() -> None:
    import ast
    from pathlib import Path

    import itoflow_data

    tree = ast.parse(Path(itoflow_data.__file__).read_text())
    seen = [
        a.asname for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 0 for a in n.names if a.asname
    ]
    assert sorted(seen) == sorted(itoflow_data._NAMES)
    assert set(seen) <= set(dir(itoflow_data))
    with pytest.raises(AttributeError, match="no attribute 'Example'"):
        itoflow_data.Example  # noqa: B018


@pytest.mark.parametrize(("n", "size"), [(10, 3), (10, 5), (4, 10), (1, 1)])
def test_batches_use_each_example_once_a_pass(n: int, size: int) -> None:
    seen = drawn(examples(n).batches(size, torch.Generator().manual_seed(0)), 2 * n)
    passes = [seen[i : i + n] for i in range(0, len(seen), n)]
    assert len(seen) == 2 * n * size
    assert all(sorted(one) == list(range(n)) for one in passes)
    assert n == 1 or len({tuple(one) for one in passes}) > 1


def test_batches_are_seeded() -> None:
    def first(seed: int) -> list[int]:
        return drawn(examples(50).batches(20, torch.Generator().manual_seed(seed)), 5)

    assert first(0) == first(0) != first(1)


def test_batches_draw_from_no_other_generator() -> None:
    state = torch.get_rng_state()
    drawn(examples(5).batches(2, torch.Generator()), 9)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("start", [0, 1, 4, 7, 100])
def test_batches_resume(start: int) -> None:
    whole = drawn(examples(10).batches(3, torch.Generator().manual_seed(0)), start + 5)
    rest = drawn(examples(10).batches(3, torch.Generator().manual_seed(0), start=start), 5)
    assert rest == whole[3 * start :]


def test_batches_keep_conditions_with_their_examples() -> None:
    for batch in islice(examples(10).batches(4), 6):
        assert torch.equal(batch.x[:, 0].long(), batch.cond["class"])


def test_batches_refuse_at_the_call() -> None:
    with pytest.raises(InputError, match="1 or more"):
        examples(3).batches(0)
    with pytest.raises(InputError, match="start 0 or more"):
        examples(3).batches(1, start=-1)
    with pytest.raises(InputError, match="no examples"):
        examples(0).batches(1)


def test_chunks_are_all_examples_in_order() -> None:
    chunks = list(examples(10).chunks(4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert torch.equal(torch.cat([chunk.x for chunk in chunks]), examples(10).x)
    with pytest.raises(InputError, match="1 or more"):
        examples(3).chunks(0)


def test_examples_move() -> None:
    moved = examples(3).to("meta")
    assert (moved.x.device.type, moved.cond["class"].device.type, len(moved)) == ("meta", "meta", 3)


def test_examples_refuse() -> None:
    with pytest.raises(InputError, match="float32"):
        Examples(torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(InputError, match=r"shape \(N, \*S\)"):
        Examples(torch.zeros(3))
    with pytest.raises(InputError, match="3 rows"):
        Examples(torch.zeros(3, 1), {"class": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(InputError, match="must have shape"):
        examples(3).check(DataSpec(shape=(2,)))
    with pytest.raises(InputError, match="unexpected"):
        examples(3).check(DataSpec(shape=(1,)))


@pytest.mark.parametrize(("n", "fraction", "test"), [(10, 0.2, 2), (2, 0.01, 1), (7, 0.5, 4), (1797, 0.1, 180)])
def test_split_indices_are_a_partition(n: int, fraction: float, test: int) -> None:
    first, second = (split_indices(n, fraction, 3, split) for split in ("train", "test"))
    assert len(second) == test
    assert sorted([*first, *second]) == list(range(n))
    assert [*first, *second] == list(np.random.default_rng(3).permutation(n))


def test_split_indices_refuse_an_empty_part() -> None:
    with pytest.raises(InputError, match="1 examples cannot be cut"):
        split_indices(1, 0.5, 0, "train")
    with pytest.raises(InputError, match=r"fraction 0\.9"):
        split_indices(3, 0.9, 0, "train")


@pytest.mark.parametrize(
    ("levels", "low", "high"), [(2, 0.0, 1.0), (17, -1.0, 1.0), (256, -1.0, 1.0), (65536, -3.0, 5.5)]
)
def test_levels_round_trip(levels: int, low: float, high: float) -> None:
    spec = DataSpec(shape=(1,), levels=levels, low=low, high=high)
    k = torch.arange(levels)[:, None]
    x = from_levels(k, spec)
    assert x.dtype == torch.float32
    assert (float(x[0]), float(x[-1])) == (low, high)
    assert torch.equal(to_levels(x, spec), k)
    nudge = 0.4 * (high - low) / (levels - 1)
    assert torch.equal(to_levels(x.double() + nudge, spec), k)
    assert torch.equal(to_levels(x.double() - nudge, spec), k)


def test_levels_of_values_outside_are_the_ends() -> None:
    spec = DataSpec(shape=(1,), levels=17)
    assert to_levels(torch.tensor([[-5.0], [1.01]]), spec).tolist() == [[0], [16]]


def test_levels_refuse() -> None:
    spec = DataSpec(shape=(1,), levels=17)
    for wrong in (torch.tensor([float("nan")]), torch.tensor([1])):
        with pytest.raises(InputError, match="floating and finite"):
            to_levels(wrong, spec)
    for wrong in (torch.tensor([0.5]), torch.tensor([True])):
        with pytest.raises(InputError, match="integers"):
            from_levels(wrong, spec)
    for value in (-1, 17):
        with pytest.raises(InputError, match="0 to 16"):
            from_levels(torch.tensor([value]), spec)
    for convert, value in ((to_levels, torch.zeros(1)), (from_levels, torch.zeros(1, dtype=torch.int64))):
        with pytest.raises(InputError, match="continuous"):
            convert(value, DataSpec(shape=(1,)))
