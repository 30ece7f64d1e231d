from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from itoflow import InputError, OptionError
from itoflow_data import load_dataset, to_levels
from itoflow_data.arrays import ArrayFile

RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 3.0, size=(50, 3, 4)).astype(np.float32)
BYTES = RNG.integers(256, size=(40, 1, 5, 5), dtype=np.uint8)
LABELS = np.arange(50) % 3


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def npy(folder: Path, array: Any, **options: Any) -> Path:
    path = folder / "data.npy"
    np.save(path, array, **options)
    return path


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    source = ArrayFile(path=npy(tmp_path, X))
    train, test = source.load("train"), source.load("test")
    order = np.random.default_rng(0).permutation(50)
    assert np.array_equal(train.x.numpy(), X[order[:40]])
    assert np.array_equal(test.x.numpy(), X[order[40:]])
    spec = source.spec
    assert (spec.shape, spec.levels, spec.classes) == ((3, 4), None, None)
    assert (spec.low, spec.high) == (X.min(), X.max())
    assert spec.std == pytest.approx(float(train.x.double().std(correction=0)), rel=1e-6)
    train.check(spec)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_become_float32(tmp_path: Path, dtype: Any) -> None:
    train = ArrayFile(path=npy(tmp_path, X.astype(dtype))).load("train")
    assert train.x.dtype == torch.float32


def test_bytes_are_levels(tmp_path: Path) -> None:
    source = ArrayFile(path=npz(tmp_path, x=BYTES), test_fraction=0.25, seed=7)
    spec, test = source.spec, source.load("test")
    chosen = np.random.default_rng(7).permutation(40)[30:]
    assert (spec.shape, spec.levels, spec.low, spec.high) == ((1, 5, 5), 256, -1.0, 1.0)
    assert np.array_equal(to_levels(test.x, spec).numpy(), BYTES[chosen])
    assert spec.std == pytest.approx(float(source.load("train").x.double().std(correction=0)), rel=1e-6)


def test_conditions(tmp_path: Path) -> None:
    path = npz(tmp_path, x=X, labels=LABELS.astype(np.uint8), vector=X[:, 0].astype(np.float64))
    source = ArrayFile(path=path, labels=True, vector=True)
    assert (source.spec.classes, source.spec.vector) == (3, 4)
    for split in ("train", "test"):
        part = source.load(split)  # type: ignore[arg-type]
        part.check(source.spec)
        assert torch.equal(part.cond["vector"], part.x[:, 0])
        where = [int(np.flatnonzero((x.numpy() == X).all((1, 2)))[0]) for x in part.x]
        assert part.cond["class"].tolist() == LABELS[where].tolist()
    assert not ArrayFile(path=path).load("train").cond


def test_a_file_that_is_cut_already(tmp_path: Path) -> None:
    path = npz(tmp_path, x=X[:30], x_test=X[30:], labels=LABELS[:30], labels_test=LABELS[30:] + 1)
    source = ArrayFile(path=path, labels=True)
    train, test = source.load("train"), source.load("test")
    assert np.array_equal(train.x.numpy(), X[:30])
    assert np.array_equal(test.x.numpy(), X[30:])
    assert np.array_equal(test.cond["class"].numpy(), LABELS[30:] + 1)
    assert source.spec.classes == 4
    assert (source.spec.low, source.spec.high) == (X.min(), X.max())
    with pytest.raises(InputError, match="cut already"):
        source.replace(test_fraction=0.5).load("train")


def test_round_trip_through_json(tmp_path: Path) -> None:
    source = ArrayFile(path=npy(tmp_path, X), test_fraction=0.5)
    assert load_dataset(json.loads(json.dumps(source.to_dict()))) == source


def test_path_is_required_and_options_are_checked() -> None:
    with pytest.raises(OptionError, match="'path' is required"):
        load_dataset("array-file")
    with pytest.raises(OptionError, match="test_fraction"):
        load_dataset({"name": "array-file", "path": "x.npy", "test_fraction": 1.0})


def test_creating_reads_nothing() -> None:
    assert load_dataset({"name": "array-file", "path": "nowhere.npy"})


def refuses(path: Path, message: str, **options: Any) -> None:
    """Both members say the same, and name the file."""
    source = ArrayFile(path=path, **options)
    for read in (lambda: source.load("train"), lambda: source.spec):
        with pytest.raises(InputError, match=message) as raised:
            read()
        assert path.name in str(raised.value)


def test_missing_file(tmp_path: Path) -> None:
    npy(tmp_path, X)
    refuses(tmp_path / "dat.npy", "does not exist.*has: data.npy")
    refuses(tmp_path / "deep" / "er" / "data.npy", "does not exist.*has: data.npy")
    refuses(tmp_path, "is a folder")
    refuses(Path("~nobody-of-this-name/data.npy"), "does not exist")


@pytest.mark.parametrize("content", [b"", b"some text", pickle.dumps([1, 2, 3])])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    refuses(path, "is no .npy or .npz file")


@pytest.mark.parametrize("keep", [20, 200, 500, -10])
@pytest.mark.parametrize("save", [npy, lambda folder, x: npz(folder, x=x)])
def test_damaged_files(tmp_path: Path, save: Any, keep: int) -> None:
    path = save(tmp_path, X)
    path.write_bytes(path.read_bytes()[:keep])
    refuses(path, "cannot be read")


def test_a_flipped_byte(tmp_path: Path) -> None:
    path = npz(tmp_path, x=X)
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    refuses(path, "x cannot be read.*CRC")


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000), }\n"
    path = tmp_path / "data.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(40))
    refuses(path, "cannot be read")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}, None], dtype=object)
    refuses(npy(tmp_path, objects, allow_pickle=True), "never unpickled")
    refuses(npz(tmp_path, x=objects), "x holds Python objects, which are never unpickled")
    refuses(npz(tmp_path, x=X, labels=np.array([None] * 50)), "labels holds Python objects", labels=True)


def test_missing_arrays(tmp_path: Path) -> None:
    path = npz(tmp_path, images=X, y=LABELS)
    refuses(path, "no array 'x'. It has: images, y")
    refuses(npz(tmp_path, x=X), "no array 'labels'", labels=True)
    refuses(npz(tmp_path, x=X), "no array 'vector'", vector=True)
    refuses(npy(tmp_path, X), "no array 'labels'", labels=True)
    refuses(npz(tmp_path, x=X, x_test=X, labels=LABELS), "no array 'labels_test'", labels=True)


def test_a_member_that_is_no_array(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "text")
    refuses(path, "is no NumPy array")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(5, dtype=np.float32), r"\(N, \*S\).*\(5,\).*\(N, 1\)"),
        (np.float32(1), r"\(N, \*S\)"),
        (np.zeros((0, 2), dtype=np.float32), "empty"),
        (np.zeros((3, 0), dtype=np.uint8), "empty"),
        (np.zeros((5, 2), dtype=np.int64), "floating or uint8.*int64"),
        (np.zeros((5, 2), dtype=bool), "floating or uint8.*bool"),
        (np.zeros((5, 2), dtype=complex), "floating or uint8.*complex128"),
        (np.zeros((5, 2), dtype="U3"), "floating or uint8.*<U3"),
        (np.zeros(5, dtype=[("a", "f4")]), "floating or uint8"),
        (np.array([[0.0, np.nan], [np.inf, 1.0]]), "2 values that are NaN"),
        (np.array([[0.0, 1e300], [0.0, 1.0]]), "1 values that are .* beyond float32"),
        (np.array([[1.0, 2.0]]), "1 examples cannot be cut"),
    ],
)
def test_wrong_x(tmp_path: Path, x: Any, message: str) -> None:
    source = ArrayFile(path=npy(tmp_path, x))
    with pytest.raises(InputError, match=message):
        source.load("train")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS[:-1]}, "labels has 49 rows, x has 50"),
        ({"labels": LABELS - 1}, "count from 0. The smallest is -1"),
        ({"labels": LABELS.astype(float)}, "labels must be integers"),
        ({"labels": LABELS[:, None]}, "labels must be integers of shape"),
        ({"vector": X[:-1, 0]}, "vector has 49 rows"),
        ({"vector": X}, r"vector must have shape \(N, V\)"),
        ({"vector": LABELS[:, None]}, "vector must be floating"),
        ({"vector": X[:, 0] * np.nan}, "vector has 200 values"),
        ({"x_test": X[:, 0]}, r"x_test is float32 of shape \(50, 4\), x is"),
        ({"x_test": np.zeros((5, 3, 4), dtype=np.uint8)}, "x_test is uint8"),
    ],
)
def test_wrong_companions(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    options = {key: True for key in arrays if key != "x_test"}
    refuses(npz(tmp_path, x=X, **arrays), message, **options)


def test_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"all values of the train part are 0\.1"):
        _ = ArrayFile(path=npy(tmp_path, np.full((9, 2), 0.1))).spec
    with pytest.raises(InputError, match="all labels are 0"):
        _ = ArrayFile(path=npz(tmp_path, x=X, labels=0 * LABELS), labels=True).spec
