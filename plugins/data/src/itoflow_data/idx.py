"""Folders of IDX files, the format of MNIST and its kin: four files, each as it is or compressed by gzip.

    train-images-idx3-ubyte   train-labels-idx1-ubyte   t10k-images-idx3-ubyte   t10k-labels-idx1-ubyte

A file is two zero bytes, a byte for the type (8: unsigned bytes), a byte for the number n of axes, n sizes as
big-endian 32-bit integers, and the values in row-major order. A byte k of an image stands at -1 + 2 k / 255.

References:
    LeCun, Cortes, Burges, The MNIST database of handwritten digits (1998), http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itoflow import DataSpec, InputError
from itoflow_data.base import DataSource, Examples, Split, from_levels, split_index
from itoflow_data.files import beside, located

Bytes = NDArray[np.uint8]
_PARTS = ("train", "t10k")
_UNSIGNED_BYTES = 8


class IdxFiles(DataSource):
    """The images of a folder of IDX files. `spec` reads the folder each time; keep what it returns."""

    path: Path
    """The folder; `~` is the home folder."""
    labels: bool = False
    """Label each image by the folder's labels; the number of classes is the largest label and one."""

    @property
    def spec(self) -> DataSpec:
        """(1, H, W) with 256 levels in [-1, 1]; `std` of the train part's values; classes of both parts.

        Raises:
            InputError: see `load`; or all values of the train part are equal, or there is one class only.
        """
        images = self._images(0)
        if images.min() == images.max():
            raise InputError(f"{self.path}: all values of the train part are {images.flat[0]}. Nothing can be learnt.")
        classes = None
        if self.labels:
            classes = 1 + max(int(self._labels(i, len(self._images(i))).max()) for i in (0, 1))
            if classes < 2:
                raise InputError(f"{self.path}: all labels are 0. Leave out the option labels.")
        std = float(images.std(dtype=np.float64)) * 2 / 255
        return DataSpec(shape=(1, *images.shape[1:]), classes=classes, std=std, levels=256, low=-1.0, high=1.0)

    def load(self, split: Split) -> Examples:
        """(N, 1, H, W), with `class` where `labels` is on.

        Raises:
            InputError: there is no such part, folder or file; a file is no IDX file of bytes, damaged, or of other
                axes; images and labels are not equally many.
        """
        index = split_index(split)
        images = self._images(index)
        cond = {}
        if self.labels:
            cond["class"] = torch.from_numpy(self._labels(index, len(images)).astype(np.int64))
        levels = torch.from_numpy(images[:, None])
        return Examples(from_levels(levels, DataSpec(shape=tuple(levels.shape[1:]), levels=256)), cond)

    def _images(self, part: int) -> Bytes:
        return read(self._file(f"{_PARTS[part]}-images", 3), 3)

    def _labels(self, part: int, images: int) -> Bytes:
        file = self._file(f"{_PARTS[part]}-labels", 1)
        labels = read(file, 1)
        if len(labels) != images:
            raise InputError(f"{file} has {len(labels)} labels for {images} images. Get both files anew.")
        return labels

    def _file(self, stem: str, axes: int) -> Path:
        folder = located(self._folder())
        names = [f"{stem}{dot}idx{axes}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise InputError(
                f"{folder} has no {names[0]}, with or without .gz.{beside(folder / names[0])} {self._advice()}"
            )
        return found

    def _folder(self) -> Path:
        return self.path

    def _advice(self) -> str:
        """What to do where a file is missing."""
        return "Give a folder with the four files of MNIST's format, e.g. by data.path=FOLDER."


def read(file: Path, axes: int) -> Bytes:
    """The bytes of an IDX file with that number of axes, compressed if its name ends in .gz.

    Raises:
        InputError: it is no such file, or damaged.
    """
    opened: Any = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rb") as stream:
            head = stream.read(4)
            if head != bytes([0, 0, _UNSIGNED_BYTES, axes]):
                raise InputError(
                    f"{file} is no IDX file of unsigned bytes with {axes} axes: it begins with {head.hex(' ')}, "
                    f"not 00 00 08 0{axes}. Get it anew."
                )
            sizes = struct.unpack(f">{axes}I", stream.read(4 * axes))
            wanted = math.prod(sizes)
            data = stream.read(wanted + 1)
    except (OSError, EOFError, zlib.error, struct.error, MemoryError, OverflowError) as error:
        raise InputError(f"{file} cannot be read: {error}. If it is damaged, get it anew.") from error
    if len(data) != wanted or not wanted:
        has = "has more" if len(data) > wanted else f"ends after {len(data)}"
        raise InputError(f"{file} says that it has {wanted} values, and {has}. Get it anew.")
    return np.frombuffer(bytearray(data), np.uint8).reshape(sizes)
