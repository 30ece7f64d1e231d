"""A folder of images, with a sub-folder for each class or without.

An image is cropped to its central square, resized, and its bytes k put at -1 + 2 k / 255.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from PIL import Image, ImageOps

from itoflow import DataSpec, InputError
from itoflow_data.base import DataSource, Examples, Split, from_levels, split_indices
from itoflow_data.files import beside, located

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Files of other names are passed over."""


class ImageFolder(DataSource):
    """The images of a folder and its sub-folders; what begins with a dot is passed over.

    `spec` reads the train part's images each time, for their deviation, unless `std` is given; keep what it returns.
    """

    path: Path
    """The folder; `~` is the home folder."""
    size: Annotated[int, Gt(0)] = 32
    """Height and width, pixels."""
    channels: Literal[1, 3] = 3
    """3 for red, green and blue, 1 for luminance. Transparent parts become white."""
    labels: bool = False
    """Label each image by its sub-folder; classes are the sub-folders of `path` that hold images, sorted by name."""
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Part of the images that is for testing."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of the order by which the images, sorted by path, are cut into two parts."""
    std: Annotated[float, Gt(0)] | None = None
    """The standard deviation of the train part's values, data units; None computes it."""

    @property
    def spec(self) -> DataSpec:
        """(channels, size, size) with 256 levels in [-1, 1].

        Raises:
            InputError: see `load`; or all values of the train part are equal.
        """
        classes = len(self.class_names) if self.labels else None
        if self.std is not None:
            return self._data(classes, self.std)
        x = self.load("train").x
        if x.min() == x.max():
            raise InputError(f"{self.path}: all values of the images are equal. There is nothing to learn.")
        return self._data(classes, float(x.to(torch.float64).std(correction=0)))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The sub-folders that hold images; the place of a name is its label.

        Raises:
            InputError: there is no such folder, or the images are not in two sub-folders or more.
        """
        return self._classes(self._files())

    def load(self, split: Split) -> Examples:
        """(N, channels, size, size), with `class` where labels are on; only the images of that part are read.

        Raises:
            InputError: there is no such part or folder; it has fewer than two images; an image cannot be read, or has
                more than 8 bits per channel; labels are on, and the images are not in two sub-folders or more.
        """
        files = self._files()
        number = {name: k for k, name in enumerate(self._classes(files))} if self.labels else {}
        chosen = [files[i] for i in split_indices(len(files), self.test_fraction, self.seed, split)]
        images = np.stack([self._image(file) for file in chosen])
        x = from_levels(torch.from_numpy(images).movedim(3, 1), self._data(None, 1.0)).contiguous()
        if not self.labels:
            return Examples(x)
        return Examples(x, {"class": torch.tensor([number[self._class(file)] for file in chosen])})

    def _data(self, classes: int | None, std: float) -> DataSpec:
        shape = (self.channels, self.size, self.size)
        return DataSpec(shape=shape, classes=classes, std=std, levels=256, low=-1.0, high=1.0)

    def _files(self) -> list[Path]:
        """The images' paths, sorted."""
        root = located(self.path)
        if not root.is_dir():
            what = "is a file, not a folder." if root.exists() else "does not exist."
            raise InputError(f"{self.path} {what}{beside(root)}")
        try:
            tops = [item for item in root.iterdir() if not item.name.startswith(".")]
        except OSError as error:
            raise InputError(f"The folder {self.path} cannot be read: {error}. Check its permissions.") from error
        # A class folder may be a link to another place; links further down are not followed, so that there is no loop.
        found = [file for top in tops for file in (top.rglob("*") if top.is_dir() else [top])]
        shown = [f for f in found if not any(part.startswith(".") for part in f.relative_to(root).parts)]
        files = [f for f in shown if f.suffix.lower() in SUFFIXES and f.is_file()]
        if not files:
            raise InputError(f"{self.path} has no images: no file ends in one of {', '.join(sorted(SUFFIXES))}.")
        return sorted(files, key=lambda file: file.relative_to(root).as_posix())

    def _class(self, file: Path) -> str:
        return file.relative_to(located(self.path)).parts[0]

    def _classes(self, files: list[Path]) -> tuple[str, ...]:
        loose = [file.name for file in files if self._class(file) == file.name]
        if loose:
            raise InputError(
                f"{self.path}: labels need each image in the sub-folder of its class. Outside: {', '.join(loose[:5])}"
                f"{' ...' if len(loose) > 5 else ''}. Move them, or leave out labels."
            )
        classes = tuple(sorted({self._class(file) for file in files}))
        if len(classes) < 2:
            raise InputError(f"{self.path}: labels need two sub-folders or more. All images are in {classes[0]!r}.")
        return classes

    def _image(self, file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """(size, size, channels)."""
        try:
            with Image.open(file) as opened:
                mode = opened.mode
                image = ImageOps.exif_transpose(opened)
                if "A" in image.getbands() or "transparency" in image.info:
                    image = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                wide = mode.startswith(("I", "F"))
                image = image.convert("RGB" if self.channels == 3 else "L")
                image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.LANCZOS)
        except Exception as error:  # decoders raise SyntaxError, struct.error, DecompressionBombError and more
            raise InputError(f"The image {file} cannot be read: {error}. Replace it, or remove it.") from error
        if wide:
            raise InputError(f"The image {file} has mode {mode}, more than 8 bits per channel. Convert it to 8 bits.")
        return np.asarray(image, dtype=np.uint8).reshape(self.size, self.size, self.channels)
