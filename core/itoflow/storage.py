"""A saved model is a folder: what it is made of, its weights, and a digest of each.

    recipe.json         format, the components by the one codec, their distributions and versions
    model.safetensors   the weights
    manifest.json       sha256 of the two files above

The folder is written under a temporary name and renamed, so that it exists whole or not at all. Loading verifies every
digest, then resolves names among the installed plugins that may load. No pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from itoflow import registry
from itoflow.composition import compose
from itoflow.errors import InputError, ItoflowError, ModelFileError, UnknownComponentError
from itoflow.model import GenerativeModel

FORMAT = 1
"""Version of the folder's layout; a reader refuses a newer one."""

_COMPILED = "_orig_mod."
"""What torch.compile puts before the names of a module's weights."""

_RECIPE, _WEIGHTS, MANIFEST = "recipe.json", "model.safetensors", "manifest.json"


def save(model: GenerativeModel, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a model to the folder `path`.

    Arguments:
        overwrite: replace a saved model that exists; anything else at `path` is left alone.

    Raises:
        InputError: `path` is no path.
        ModelFileError: `path` exists and is not to be replaced, or cannot be written.
        SpecError: a component is registered by no plugin, so that no recipe can name it.
    """
    target = _path(path)
    recipe = {"format": FORMAT, "model": model.recipe, "distributions": _provenance(model.recipe)}
    if target.exists() and not overwrite:
        raise ModelFileError(f"{target} exists. Choose another path, or pass overwrite=True.")
    if target.exists() and not (target / MANIFEST).is_file():
        raise ModelFileError(f"{target} exists and is no saved model, so it is not overwritten. Choose another path.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ModelFileError(f"Cannot write to {target.parent}: {error.strerror or error}.") from error
    try:
        (temporary / _RECIPE).write_text(json.dumps(recipe, indent=2) + "\n")
        save_file(_weights(model), temporary / _WEIGHTS)
        digests = {name: _sha256(temporary / name) for name in (_RECIPE, _WEIGHTS)}
        (temporary / MANIFEST).write_text(json.dumps(digests, indent=2) + "\n")
        for name in (_RECIPE, _WEIGHTS, MANIFEST):
            _flush(temporary / name)
        temporary.chmod(0o755)
        _replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"Cannot write {target}: {getattr(error, 'strerror', None) or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> GenerativeModel:
    """Read a model that `save` wrote, in evaluation mode.

    Arguments:
        device: where the weights go; their dtypes are those of the saved model.

    Raises:
        InputError: `path` is no path, or `device` no device.
        ModelFileError: the folder is missing, incomplete, damaged, of a newer format, or made with a plugin that is
            not installed; says which, and what to do.
    """
    folder, place = _path(path), _device(device)
    if not folder.is_dir():
        raise ModelFileError(f"No saved model at {folder}: a model is a folder with {_RECIPE}, {_WEIGHTS}, {MANIFEST}.")
    if not (folder / MANIFEST).exists() and (inside := _inside(folder)):
        raise ModelFileError(f"No saved model at {folder}, but inside it: {', '.join(map(str, inside))}.")
    _verify(folder)
    saved = _read_json(folder / _RECIPE)
    if not isinstance(saved.get("format"), int) or saved["format"] > FORMAT:
        raise ModelFileError(
            f"{folder} has format {saved.get('format')!r}; this itoflow {version('itoflow')} reads up to {FORMAT}. "
            "Upgrade it: pip install -U itoflow"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # building draws initial weights, which the saved ones replace
            model = compose(**saved["model"])
        weights = load_file(folder / _WEIGHTS)
        _adopt_dtypes(model.field, weights)
        model.field.load_state_dict(weights)
    except UnknownComponentError as error:
        raise ModelFileError(
            f"{folder} needs a plugin that is not available. {_install_hint(saved)}\n{error}"
        ) from error
    except (ItoflowError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{folder} cannot be rebuilt by the installed plugins: {error}\nIt was made with: "
            + ", ".join(f"{name} {made}" for name, made in saved.get("distributions", {}).items())
        ) from error
    return model.to(place).eval()


def _path(given: str | os.PathLike[str]) -> Path:
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(f"A saved model is a folder, whose path is a str or a pathlib.Path. Given: {given!r}.")
    return Path(given)


def _device(given: str | torch.device) -> torch.device:
    try:
        return torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device is one of torch, e.g. 'cpu' or 'cuda'. Given: {given!r}.") from error


def _inside(folder: Path) -> list[Path]:
    """The saved models in a folder, or in its folders: checkpoints of a run, say."""
    return sorted(found.parent for depth in ("*", "*/*") for found in folder.glob(f"{depth}/{MANIFEST}"))


def _adopt_dtypes(field: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give the field's tensors the saved dtypes; otherwise copying would round the saved values to the present ones."""
    for name, value in (*field.named_parameters(), *field.named_buffers()):
        if name in weights and value.is_floating_point():
            value.data = value.data.to(weights[name].dtype)


def _weights(model: GenerativeModel) -> dict[str, torch.Tensor]:
    """The state of the field, contiguous, by the names that it has uncompiled.

    A weight with two names is copied, for the format holds no shared memory.
    """
    weights: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, value in model.field.state_dict().items():
        pointer = value.untyped_storage().data_ptr()
        plain = name.replace(_COMPILED, "")
        weights[plain] = value.detach().clone() if pointer in seen else value.detach().contiguous()
        seen.add(pointer)
    return weights


def _verify(folder: Path) -> None:
    digests = _read_json(folder / MANIFEST)
    if set(digests) != {_RECIPE, _WEIGHTS}:
        raise ModelFileError(f"{folder / MANIFEST} is damaged: it must name {_RECIPE} and {_WEIGHTS}. Copy it again.")
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise ModelFileError(f"{folder} is incomplete: {name} is missing. Copy the whole folder again.")
        if _sha256(folder / name) != digest:
            raise ModelFileError(
                f"{folder / name} is damaged: its sha256 is not the one in {MANIFEST}. Copy it again from its source."
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path.parent} is incomplete: {path.name} is missing. Copy the whole folder again."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is damaged: {error}. Copy it again from its source.") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} is damaged: it holds no JSON object. Copy it again from its source.")
    return content


def _provenance(recipe: dict[str, Any]) -> dict[str, str]:
    """The distributions of all components, those inside others too, with their versions."""
    found = {"itoflow": version("itoflow")}
    versions = {report.distribution: report.version for report in registry.registry().reports}

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            owner = str(value.get("name", "")).partition(":")[0]
            if owner in versions:
                found[owner] = versions[owner]
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(recipe)
    return found


def _install_hint(saved: dict[str, Any]) -> str:
    installed = {report.distribution for report in registry.registry().reports} | {"itoflow"}
    missing = [f"{name}=={made}" for name, made in saved.get("distributions", {}).items() if name not in installed]
    return f"Install it: pip install {' '.join(missing)}" if missing else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _replace(source: Path, target: Path) -> None:
    """Rename source to target; an existing target is moved aside first and removed last."""
    if not target.exists():
        source.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        target.rename(aside / target.name)
        try:
            source.rename(target)
        except BaseException:
            (aside / target.name).rename(target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
