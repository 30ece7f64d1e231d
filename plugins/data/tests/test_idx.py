from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from itoflow import InputError
from itoflow_data import load_dataset, to_levels
from itoflow_data.fashion_mnist import DEBIAN, STD, FashionMNIST
from itoflow_data.idx import Bytes, IdxFiles

RNG = np.random.default_rng(0)
TRAIN, TEST = (RNG.integers(256, size=(n, 5, 7), dtype=np.uint8) for n in (12, 6))
TRAIN_LABELS, TEST_LABELS = np.arange(12, dtype=np.uint8) % 3, np.arange(6, dtype=np.uint8) % 4


def idx(array: Bytes) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(params=["plain", "gzip", "dots"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    files = {
        "train-images-idx3-ubyte": TRAIN,
        "train-labels-idx1-ubyte": TRAIN_LABELS,
        "t10k-images-idx3-ubyte": TEST,
        "t10k-labels-idx1-ubyte": TEST_LABELS,
    }
    for name, array in files.items():
        if request.param == "gzip":
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (tmp_path / (name.replace("-idx", ".idx") if request.param == "dots" else name)).write_bytes(idx(array))
    return tmp_path


def test_images_and_labels_are_those_of_the_files(folder: Path) -> None:
    source = load_dataset({"name": "idx-files", "path": str(folder), "labels": True})
    spec = source.spec
    assert (spec.shape, spec.levels, spec.classes, spec.low, spec.high) == ((1, 5, 7), 256, 4, -1.0, 1.0)
    assert spec.std == pytest.approx(float((TRAIN / 127.5).std()), rel=1e-12)
    for split, images, labels in (("train", TRAIN, TRAIN_LABELS), ("test", TEST, TEST_LABELS)):
        part = source.load(split)  # type: ignore[arg-type]
        part.check(spec)
        assert np.array_equal(to_levels(part.x, spec).numpy()[:, 0], images)
        np.testing.assert_allclose(part.x.numpy()[:, 0], images / 127.5 - 1, atol=1e-6)
        assert part.cond["class"].tolist() == labels.tolist()


def test_labels_are_an_option(folder: Path) -> None:
    source = IdxFiles(path=folder)
    assert source.spec.classes is None
    assert not source.load("test").cond


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x00\x00\x08", "begins with 00 00 08, not 00 00 08 03"),
        (b"PK\x03\x04 and more", "no IDX file"),
        (b"\x00\x00\x0d\x03" + bytes(12), "no IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x01" + bytes(4), "with 3 axes"),
        (b"\x00\x00\x08\x03" + bytes(5), "cannot be read"),
        (idx(TRAIN)[:-1], "says that it has 420 values, and ends after 419"),
        (idx(TRAIN) + b"x", "says that it has 420 values, and has more"),
        (idx(TRAIN[:0]), "says that it has 0 values"),
    ],
)
def test_damaged_files_are_errors(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=says):
        IdxFiles(path=tmp_path).load("train")


@pytest.mark.parametrize("content", [idx(TRAIN), gzip.compress(idx(TRAIN))[:-20], gzip.compress(b"text")])
def test_damaged_compression_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(InputError, match="train-images-idx3-ubyte"):
        IdxFiles(path=tmp_path).load("train")


def test_images_and_labels_are_equally_many(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(TRAIN))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(TRAIN_LABELS[1:]))
    with pytest.raises(InputError, match="has 11 labels for 12 images"):
        IdxFiles(path=tmp_path, labels=True).load("train")


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [(TRAIN, 0 * TRAIN_LABELS, "all labels are 0"), (0 * TRAIN + 3, TRAIN_LABELS, "values of the train part are 3")],
)
def test_what_teaches_nothing_is_refused(tmp_path: Path, images: Bytes, labels: Bytes, says: str) -> None:
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(InputError, match=says):
        _ = IdxFiles(path=tmp_path, labels=True).spec


def test_absent_files_say_where_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "other.txt").touch()
    with pytest.raises(InputError, match=r"has no train-images-idx3-ubyte.* has: other.txt. .*data.path=FOLDER"):
        IdxFiles(path=tmp_path).load("train")
    with pytest.raises(InputError, match=r"apt-get install dataset-fashion-mnist.*github.com/zalandoresearch"):
        FashionMNIST(path=tmp_path / "nowhere").load("train")


def test_fashion_mnist_knows_its_spec_without_files(tmp_path: Path) -> None:
    spec = FashionMNIST(path=tmp_path, labels=True).spec
    assert (spec.shape, spec.classes, spec.levels, spec.std) == ((1, 28, 28), 10, 256, STD)
    assert FashionMNIST().spec.classes is None
    assert FashionMNIST().path == DEBIAN


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the files: apt-get install dataset-fashion-mnist")
def test_fashion_mnist_is_what_its_spec_says() -> None:
    source = FashionMNIST(labels=True)
    train, test = source.load("train"), source.load("test")
    train.check(source.spec)
    assert (train.x.shape, test.x.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert torch.equal(train.cond["class"].bincount(), torch.full((10,), 6000))
    assert abs(float(train.x.double().std(correction=0)) - STD) < 1e-6
