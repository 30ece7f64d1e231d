"""Arrays of a NumPy file.

A .npy file is one array x. A .npz file has

    x        (N, *S): floating values, taken as they are, or uint8 levels k, standing at -1 + 2 k / 255
    labels   (N,) integers from 0, where the option `labels` is on
    vector   (N, V) floating, where the option `vector` is on

and may have x_test, labels_test and vector_test; without x_test a part of the examples is kept for testing. Images
are channels first, (N, C, H, W). Nothing pickled is read.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray
from torch import Tensor

from itoflow import DataSpec, InputError
from itoflow.errors import listing
from itoflow_data.base import DataSource, Examples, Split, from_levels, split_index, split_indices
from itoflow_data.files import beside, located

Array = NDArray[Any]
Arrays = Mapping[str, Any]
_DAMAGE = (ValueError, OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What NumPy and zipfile raise for a damaged file, an encrypted one, or one that does not fit in memory."""


class ArrayFile(DataSource):
    """The arrays of a .npy or .npz file. `spec` reads the file each time; keep what it returns."""

    path: Path
    """The file; `~` is the home folder."""
    labels: bool = False
    """Label each example by the file's `labels`; the number of classes is the largest label and one."""
    vector: bool = False
    """Give each example the row of the file's `vector` as its condition."""
    test_fraction: Annotated[float, Gt(0), Lt(1)] | None = None
    """Part of the examples that is for testing, where the file has no x_test; None means 0.2 there."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the order by which the examples are cut into two parts, where the file has no x_test."""

    @property
    def spec(self) -> DataSpec:
        """From the file: `std` of the train part's values; bounds and classes of both parts.

        Raises:
            InputError: see `load`; or all values of the train part are equal, or there is one class only.
        """
        parts = self._parts()
        x, classes, vector = parts[0]["x"], None, None
        if x.min() == x.max():
            raise InputError(f"{self.path}: all values of the train part are {x.flat[0]}. There is nothing to learn.")
        std = float(x.std(dtype=np.float64))
        bounds: dict[str, Any] = {"levels": 256, "low": -1.0, "high": 1.0}
        if x.dtype == np.uint8:
            std *= 2 / 255
        else:
            bounds = {
                "low": min(float(part["x"].min()) for part in parts),
                "high": max(float(part["x"].max()) for part in parts),
            }
        if self.labels:
            classes = 1 + max(int(part["labels"].max()) for part in parts)
            if classes < 2:
                raise InputError(f"{self.path}: all labels are 0. Leave out the option labels.")
        if self.vector:
            vector = parts[0]["vector"].shape[1]
        return DataSpec(shape=x.shape[1:], classes=classes, vector=vector, std=std, **bounds)

    def load(self, split: Split) -> Examples:
        """The file's x as (N, *S), with `class` and `vector` where those options are on.

        Raises:
            InputError: there is no such part or file; it is no .npy or .npz file, or damaged; an array is missing, of
                the wrong type or shape, or not finite; test_fraction is given where the file has x_test.
        """
        part = self._parts()[split_index(split)]
        x = part["x"]
        cond: dict[str, Tensor] = {}
        if self.labels:
            cond["class"] = torch.from_numpy(part["labels"])
        if self.vector:
            cond["vector"] = torch.from_numpy(part["vector"])
        if x.dtype != np.uint8:
            return Examples(torch.from_numpy(x), cond)
        return Examples(from_levels(torch.from_numpy(x), DataSpec(shape=x.shape[1:], levels=256)), cond)

    def _parts(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """The checked arrays of the two parts."""
        keys = ["x", *(key for key in ("labels", "vector") if getattr(self, key))]
        with _opened(self.path) as arrays:
            train = _part(self.path, arrays, {key: key for key in keys})
            test = _part(self.path, arrays, {key: f"{key}_test" for key in keys}) if "x_test" in arrays else None
        if test is None:
            n = len(train["x"])
            fraction = 0.2 if self.test_fraction is None else self.test_fraction
            chosen = (split_indices(n, fraction, self.seed, "train"), split_indices(n, fraction, self.seed, "test"))
            first, second = ({key: value[index] for key, value in train.items()} for index in chosen)
            return first, second
        if self.test_fraction is not None:
            raise InputError(f"{self.path} is cut already: it has x_test. Leave out test_fraction, or remove x_test.")
        for key, value in test.items():
            if (value.shape[1:], value.dtype) != (train[key].shape[1:], train[key].dtype):
                raise InputError(
                    f"{self.path}: {key}_test is {_describe(value)}, {key} is {_describe(train[key])}. "
                    "They must agree but for the number of rows."
                )
        return train, test


@contextmanager
def _opened(path: Path) -> Iterator[Arrays]:
    """The arrays of a file by their names; those of a .npz file are read one by one, when asked for."""
    file = located(path)
    if not file.is_file():
        what = "is a folder." if file.is_dir() else "does not exist."
        raise InputError(f"{path} {what}{beside(file)}")
    with ExitStack() as stack:
        with _reading(f"{path}"):
            stream = stack.enter_context(file.open("rb"))  # np.load leaves a damaged file open
            magic = stream.read(6)
            stream.seek(0)
            # np.load takes anything else for a pickle, and says so.
            known = magic == b"\x93NUMPY" or magic[:4] in (b"PK\x03\x04", b"PK\x05\x06")
            found = np.load(stream, allow_pickle=False) if known else None
        if found is None:
            raise InputError(f"{path} is no .npy or .npz file. Write one by np.save or np.savez.")
        yield {"x": found} if isinstance(found, np.ndarray) else stack.enter_context(found)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """One error for what NumPy and zipfile raise."""
    try:
        yield
    except _DAMAGE as error:
        if "allow_pickle" in str(error):
            raise InputError(f"{where} holds Python objects, which are never unpickled. Save numbers.") from None
        raise InputError(f"{where} cannot be read: {error}. If the file is damaged, write it again.") from error


def _part(path: Path, arrays: Arrays, names: dict[str, str]) -> dict[str, Array]:
    """The arrays of one part, checked, by what they are; `names` says what each is called in the file."""
    part = {}
    for key, name in names.items():
        if name not in arrays:
            raise InputError(f"{path} has no array {name!r}. It has: {listing(arrays)}. Save it by np.savez.")
        where = f"{path}: {name}"
        with _reading(where):
            array = arrays[name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"{where} is no NumPy array. Save it by np.savez.")
        part[key] = _integers(array, where) if key == "labels" else _numbers(array, where, key)
        if len(part[key]) != len(part["x"]):
            raise InputError(f"{where} has {len(part[key])} rows, {names['x']} has {len(part['x'])}. They must agree.")
    return part


def _integers(array: Array, where: str) -> Array:
    """Labels, (N,) int64."""
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise InputError(f"{where} must be integers of shape (N,). It is {_describe(array)}.")
    labels = array.astype(np.int64)
    if labels.size and labels.min() < 0:
        raise InputError(f"{where} must count from 0. The smallest is {labels.min()}.")
    return labels


def _numbers(array: Array, where: str, key: str) -> Array:
    """Values, uint8 (x only) or float32: x (N, *S), vector (N, V)."""
    byte = array.dtype == np.uint8 and key == "x"
    if not byte and array.dtype.kind != "f":
        allowed = "floating or uint8" if key == "x" else "floating"
        raise InputError(
            f"{where} must be {allowed}. It is {_describe(array)}. Scale it to about unit deviation, as float32."
        )
    if array.ndim < 2 or (key == "vector" and array.ndim > 2):
        shape = "(N, *S)" if key == "x" else "(N, V)"
        raise InputError(f"{where} must have shape {shape}. It is {_describe(array)}. Single numbers are (N, 1).")
    if array.size == 0:
        raise InputError(f"{where} is empty. It is {_describe(array)}.")
    if byte:
        return array
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused below
        values = array.astype(np.float32)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InputError(f"{where} has {bad} values that are NaN, infinite or beyond float32. Repair or remove them.")
    return values


def _describe(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"
