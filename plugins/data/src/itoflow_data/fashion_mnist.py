"""Fashion-MNIST: 60000 + 10000 grey images of 28 x 28 pixels, of ten kinds of clothing.

0 T-shirt, 1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag, 9 ankle boot.

References:
    Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (Xiao et al., 2017),
    https://arxiv.org/abs/1708.07747.
"""

from __future__ import annotations

from pathlib import Path

from itoflow import DataSpec
from itoflow_data.idx import IdxFiles

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where the package dataset-fashion-mnist of Debian and its kin puts the files."""
STD = 0.7060485
"""The standard deviation of all values of the train part."""


class FashionMNIST(IdxFiles):
    """Fashion-MNIST from the files of a Debian package, or from a folder; nothing is downloaded."""

    path: Path = DEBIAN
    """The folder with the four files; `~` is the home folder."""

    @property
    def spec(self) -> DataSpec:
        """(1, 28, 28) with 256 levels in [-1, 1]; ten classes where `labels` is on. Reads nothing."""
        return DataSpec(shape=(1, 28, 28), classes=10 if self.labels else None, std=STD, levels=256, low=-1.0, high=1.0)

    def _advice(self) -> str:
        return (
            "Get the files by `apt-get install dataset-fashion-mnist`; or, without Debian, from "
            "https://github.com/zalandoresearch/fashion-mnist into a folder of yours, and give data.path=FOLDER."
        )
