"""A saved model: the same weights and samples back, every damage noticed, nothing half written."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import itoflow
from itoflow import GenerativeModel, registry, storage
from itoflow.errors import InputError, ModelFileError, SpecError

FILES = ("recipe.json", "model.safetensors", "manifest.json")


@pytest.fixture
def saved(model: GenerativeModel, tmp_path: Path) -> Path:
    return model.save(tmp_path / "models" / "first")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the recipe and keep the manifest right."""
    recipe = json.loads((folder / "recipe.json").read_text())
    change(recipe)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    digests = json.loads((folder / "manifest.json").read_text())
    digests["recipe.json"] = hashlib.sha256((folder / "recipe.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(digests))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_weights_and_samples_come_back_bit_for_bit(model: GenerativeModel, saved: Path) -> None:
    back = itoflow.load(saved)
    assert back.recipe == model.recipe
    expected = model.state_dict()
    assert expected.keys() == back.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in back.state_dict().items())
    draws = [m.sample(5, generator=torch.Generator().manual_seed(0)) for m in (model, back)]
    assert torch.equal(*draws)
    assert not back.training


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": None},
        {"sampler": {"name": "scaled", "inner": "euler"}},
        {"process": {"name": "decay", "rate": float("inf")}},
        {"backbone": {"name": "linear", "tied": True}},
        {"data": {"shape": (2, 2), "classes": 3, "vector": 4}},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.filterwarnings("ignore:.* does not suit data")  # nothing is left of them at this rate
def test_every_composition_can_be_saved(toy: ModuleType, tmp_path: Path, changes: dict[str, Any]) -> None:
    parts = {"process": "decay", "objective": "denoise", "backbone": "linear", "sampler": "noisy", "data": (3,)}
    model = itoflow.compose(**{**parts, **changes})
    assert itoflow.load(model.save(tmp_path / "m")).recipe == model.recipe


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_keep_their_dtype(toy: ModuleType, tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    backbone = {"name": "linear", "tied": tied}
    model = itoflow.compose(process="decay", objective="denoise", backbone=backbone, data=(3,)).to(dtype)
    back = itoflow.load(model.save(tmp_path / "m"))
    assert {p.dtype for p in back.parameters()} == {dtype}
    assert all(torch.equal(*pair) for pair in zip(back.parameters(), model.parameters(), strict=True))


def test_a_compiled_network_is_saved_as_it_was(model: GenerativeModel, tmp_path: Path) -> None:
    before = model.state_dict()
    model.field.net = torch.compile(model.field.net, backend="eager")  # type: ignore[assignment]
    back = itoflow.load(model.save(tmp_path / "m"))
    assert back.state_dict().keys() == before.keys()


def test_a_sampler_set_by_name_is_kept(model: GenerativeModel, tmp_path: Path) -> None:
    model.sampler = "euler"  # type: ignore[assignment]
    back = itoflow.load(model.save(tmp_path / "m"))
    assert back.sampler == registry.create("sampler", "euler")


@pytest.mark.parametrize("device", ["tpv", 1.5])
def test_a_device_that_is_none_is_not_blamed_on_the_folder(saved: Path, device: Any) -> None:
    with pytest.raises(InputError, match=f"device is one of torch, e.g. 'cpu' or 'cuda'. Given: {device!r}"):
        itoflow.load(saved, device=device)


def test_a_lowered_t_max_is_kept(toy: ModuleType, tmp_path: Path) -> None:
    objective = {"name": "denoise", "prediction": "eps"}
    with pytest.warns(itoflow.ItoflowWarning):
        model = itoflow.compose(process="straight", objective=objective, backbone="linear", data=(3,))
    assert itoflow.load(model.save(tmp_path / "m")).process == model.process


def test_says_what_it_was_made_with(saved: Path) -> None:
    recipe = json.loads((saved / "recipe.json").read_text())
    assert recipe["distributions"].keys() == {"itoflow", "itoflow-toy"}
    assert recipe["distributions"]["itoflow-toy"] == "1.0"


def test_holds_three_files_and_nothing_beside(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    assert [path.name for path in saved.parent.iterdir()] == ["first"]


@pytest.mark.parametrize("name", ["absent", "first/recipe.json"])
def test_no_folder(saved: Path, name: str) -> None:
    with pytest.raises(ModelFileError, match=r"No saved model at .*: a model is a folder with recipe.json, "):
        itoflow.load(saved.parent / name)


def test_a_folder_around_it(saved: Path) -> None:
    for folder in (saved.parent, saved.parent.parent):
        with pytest.raises(ModelFileError) as caught:
            itoflow.load(folder)
        assert str(caught.value) == f"No saved model at {folder}, but inside it: {saved}."


def test_no_path(saved: Path) -> None:
    model = itoflow.load(saved)
    for refused in (lambda: itoflow.load(3), lambda: model.save(None)):  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"a str or a pathlib\.Path\. Given: "):
            refused()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelFileError, match=f"is incomplete: {name} is missing"):
        itoflow.load(saved)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 1, 0.5, -2])
def test_a_truncated_file(saved: Path, name: str, keep: float) -> None:
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(keep * len(data)) if keep == 0.5 else int(keep)])
    with pytest.raises(ModelFileError, match=f"{name} is damaged"):
        itoflow.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    for bit in random.Random(0).sample(range(8 * len(data)), 40):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (saved / name).write_bytes(flipped)
        with pytest.raises(ModelFileError, match=r"is damaged"):
            itoflow.load(saved)
    (saved / name).write_bytes(data)
    itoflow.load(saved)


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b'{"recipe.json": "", "model.safetensors": "", "../x": ""}', b"null"]
)
def test_a_manifest_that_is_none(saved: Path, content: bytes) -> None:
    (saved / "manifest.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"manifest.json is damaged"):
        itoflow.load(saved)


@pytest.mark.parametrize("version", [storage.FORMAT + 1, "2", None])
def test_a_format_that_it_cannot_read(saved: Path, version: object) -> None:
    rewrite(saved, lambda recipe: recipe.update(format=version))
    with pytest.raises(ModelFileError, match=rf"has format {version!r}; this itoflow .* reads up to 1\. Upgrade it"):
        itoflow.load(saved)


def test_an_absent_plugin_is_named_with_its_version(saved: Path) -> None:
    def from_elsewhere(recipe: dict[str, Any]) -> None:
        recipe["model"]["process"] = {"name": "itoflow-elsewhere:spiral"}
        recipe["distributions"]["itoflow-elsewhere"] = "0.3"

    rewrite(saved, from_elsewhere)
    with pytest.raises(ModelFileError, match=r"not available\. Install it: pip install itoflow-elsewhere==0\.3\n"):
        itoflow.load(saved)


def test_a_plugin_that_may_not_load_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITOFLOW_DISABLE_PLUGINS", "itoflow-toy")
    registry.reset()
    with pytest.raises(ModelFileError, match="Plugin itoflow-toy is disabled: in ITOFLOW_DISABLE_PLUGINS"):
        itoflow.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: recipe["model"]["process"].update(speed=1),
        lambda recipe: recipe["model"]["data"].update(shape=[4]),
        lambda recipe: recipe["model"].update(process=None),
        lambda recipe: recipe["model"].pop("backbone"),
        lambda recipe: recipe.pop("model"),
        lambda recipe: recipe.update(model=3),
    ],
    ids=["option", "shape", "process", "part", "model", "type"],
)
def test_a_recipe_that_the_plugins_no_longer_understand(
    saved: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite(saved, change)
    with pytest.raises(ModelFileError, match=r"(?s)cannot be rebuilt by the installed plugins.*\n.*itoflow-toy 1\.0"):
        itoflow.load(saved)


def test_an_existing_model_is_kept_unless_overwritten(model: GenerativeModel, saved: Path) -> None:
    before = contents(saved.parent)
    with pytest.raises(ModelFileError, match=r"exists\. Choose another path, or pass overwrite=True"):
        model.save(saved)
    assert contents(saved.parent) == before
    torch.nn.init.ones_(model.field.net.matrix.weight)
    model.save(saved, overwrite=True)
    assert torch.equal(itoflow.load(saved).field.net.matrix.weight, model.field.net.matrix.weight)
    assert [path.name for path in saved.parent.iterdir()] == ["first"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_model_is_never_overwritten(model: GenerativeModel, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "thesis"
    if kind == "folder":
        target.mkdir()
    (target / "chapter" if kind == "folder" else target).write_text("years of work")
    with pytest.raises(ModelFileError, match="is no saved model, so it is not overwritten"):
        model.save(target, overwrite=True)
    assert "years of work" in [text.decode() for text in contents(tmp_path).values()]


@pytest.mark.parametrize("stage", ["save_file", "_sha256", "_flush", "_replace"])
@pytest.mark.parametrize(
    ("raised", "seen"), [(OSError(28, "No space left"), ModelFileError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_left_when_writing_stops(
    model: GenerativeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    raised: BaseException,
    seen: type[BaseException],
    overwrite: bool,
) -> None:
    def stop(*_: object) -> None:
        raise raised

    folder = tmp_path / "models"
    folder.mkdir()
    if overwrite:
        model.save(folder / "m")
    before = contents(folder)
    monkeypatch.setattr(storage, stage, stop)
    with pytest.raises(seen):
        model.save(folder / "m", overwrite=overwrite)
    assert contents(folder) == before
    assert [path.name for path in folder.iterdir()] == ["m"] * overwrite


def test_the_old_model_stays_when_the_new_one_cannot_take_its_place(
    model: GenerativeModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = contents(saved.parent), Path.rename

    def failing(source: Path, target: Path) -> Path:
        if target == saved and "-old-" not in str(source):
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ModelFileError, match=r"Cannot write .*: Input/output error"):
        model.save(saved, overwrite=True)
    assert contents(saved.parent) == before


def test_a_folder_that_cannot_be_written(model: GenerativeModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="Cannot write to "):
        model.save(tmp_path / "file" / "m")


def test_a_component_without_a_name_is_refused_before_anything_is_written(toy: ModuleType, tmp_path: Path) -> None:
    class Own(toy.Decay):  # type: ignore[misc, name-defined]
        pass

    model = itoflow.compose(process=Own(), objective="denoise", backbone="linear", data=(3,))
    with pytest.raises(SpecError, match="registered by no installed plugin"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_no_pickle_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("a pickle was read"))
    itoflow.load(saved)
    (saved / "model.safetensors").write_bytes(pickle.dumps({"matrix.weight": 1}))
    digests = json.loads((saved / "manifest.json").read_text())
    digests["model.safetensors"] = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    (saved / "manifest.json").write_text(json.dumps(digests))
    with pytest.raises(ModelFileError, match="cannot be rebuilt"):
        itoflow.load(saved)
