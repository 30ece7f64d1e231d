from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from itoflow import InputError, OptionError
from itoflow_data import load_dataset, to_levels
from itoflow_data.images import ImageFolder

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten plain images, and what must be passed over."""
    root = tmp_path / "images"
    for name, colour in COLOURS.items():
        (root / name / "deep").mkdir(parents=True)
        for k in range(10):
            inner = root / name / "deep" if k == 9 else root / name
            shade = tuple(c - 5 * k if c else 0 for c in colour)
            Image.new("RGB", (20, 12), shade).save(inner / f"{k}.{'png' if k % 2 else 'PNG'}")
        (root / name / "notes.txt").write_text("no image")
        (root / name / ".hidden.png").write_text("no image")
    for hidden in (root / ".cache", root / "red" / ".cache"):
        hidden.mkdir()
        (hidden / "thumb.png").write_text("no image")
    (root / "empty").mkdir()
    return root


def one(tmp_path: Path, image: Image.Image, name: str = "0.png", **options: Any) -> torch.Tensor:
    """What becomes of one image, (C, size, size) levels; the other one only makes up the numbers."""
    root = tmp_path / "one"
    root.mkdir()
    image.save(root / name, **options.pop("save", {}))
    Image.new("RGB", (4, 4)).save(root / "1.png")
    source = ImageFolder(path=root, std=1.0, **options)
    for split in ("train", "test"):
        x = source.load(split).x  # type: ignore[arg-type]
        order = np.random.default_rng(0).permutation(2)
        if order[0 if split == "train" else 1] == 0:
            return to_levels(x[0], source.spec)
    raise AssertionError


def test_parts_are_a_partition_by_class(folder: Path) -> None:
    source = ImageFolder(path=folder, size=8, labels=True, test_fraction=0.25, seed=3)
    assert source.class_names == ("blue", "red")
    train, test = source.load("train"), source.load("test")
    assert (train.x.shape, test.x.shape) == ((15, 3, 8, 8), (5, 3, 8, 8))
    shades = set()
    for part in (train, test):
        part.check(source.spec)
        for x, label in zip(to_levels(part.x, source.spec), part.cond["class"], strict=True):
            channel = 2 if source.class_names[label] == "blue" else 0
            assert bool((x[channel] == x[channel, 0, 0]).all())
            assert int(x.sum(0)[0, 0]) == int(x[channel, 0, 0])
            shades.add((int(label), int(x[channel, 0, 0])))
    assert shades == {(label, 255 - 5 * k) for label in (0, 1) for k in range(10)}
    assert torch.equal(train.x, source.replace().load("train").x)


def test_spec_is_that_of_the_data(folder: Path) -> None:
    source = ImageFolder(path=folder, size=8, labels=True)
    spec = source.spec
    assert (spec.shape, spec.classes, spec.levels, spec.low, spec.high) == ((3, 8, 8), 2, 256, -1.0, 1.0)
    assert spec.std == pytest.approx(float(source.load("train").x.double().std(correction=0)))
    assert ImageFolder(path=folder).spec.classes is None


def test_given_std_reads_no_image(tmp_path: Path) -> None:
    for k in range(2):
        (tmp_path / f"{k}.png").write_text("no image")
    assert ImageFolder(path=tmp_path, std=0.5).spec.std == 0.5


def test_the_central_square_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, 2:6] = np.arange(48).reshape(4, 4, 3)
    levels = one(tmp_path, Image.fromarray(pixels), size=4)
    assert np.array_equal(levels.movedim(0, 2).numpy(), pixels[:, 2:6])


def test_one_channel(tmp_path: Path) -> None:
    levels = one(tmp_path, Image.new("RGB", (4, 4), (0, 255, 0)), size=2, channels=1)
    assert levels.tolist() == [[[150, 150], [150, 150]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "RGB"])
def test_modes(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    levels = one(tmp_path, image, name="0.tiff", size=4)
    assert bool((levels == 255).all())


def test_transparent_is_white(tmp_path: Path) -> None:
    assert bool((one(tmp_path, Image.new("RGBA", (4, 4), (255, 0, 0, 0)), size=4) == 255).all())


def test_transparent_palette_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 0, 0] * 256)
    assert bool((one(tmp_path, image, size=4, save={"transparency": bytes([0] * 256)}) == 255).all())


def test_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[0] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 3  # turned by 180 degrees
    levels = one(tmp_path, image, size=4, channels=1, save={"exif": exif})
    assert levels[0].tolist() == pixels[::-1].tolist()


def test_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    levels = one(
        tmp_path, frames[0], name="0.gif", size=4, channels=1, save={"save_all": True, "append_images": frames[1:]}
    )
    assert bool((levels == 10).all())


def test_class_folders_may_be_links(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in COLOURS:
        (linked / name).symlink_to(folder / name, target_is_directory=True)
    (folder / "red" / "loop").symlink_to(folder, target_is_directory=True)
    source = ImageFolder(path=linked, size=4, labels=True)
    assert source.class_names == ("blue", "red")
    assert len(source.load("train")) + len(source.load("test")) == 20


def test_round_trip_through_json(folder: Path) -> None:
    source = ImageFolder(path=folder, size=4, channels=1)
    assert load_dataset(json.loads(json.dumps(source.to_dict()))) == source


@pytest.mark.parametrize("wrong", [{"size": 0}, {"channels": 2}, {"test_fraction": 0.0}, {"seed": -1}, {"std": 0.0}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(wrong))):
        ImageFolder(path=Path("x"), **wrong)


def refuses(path: Path, message: str, **options: Any) -> None:
    source = ImageFolder(path=path, size=4, **options)
    for read in (lambda: source.load("train"), lambda: source.spec):
        with pytest.raises(InputError, match=message):
            read()


def test_wrong_folders(folder: Path) -> None:
    refuses(folder.parent / "image", "image does not exist.*has: images")
    refuses(folder / "red" / "notes.txt", "is a file, not a folder")
    refuses(folder / "empty", "has no images: no file ends in one of .*png")
    with pytest.raises(InputError, match="No part"):
        ImageFolder(path=folder).load("all")  # type: ignore[arg-type]


def test_a_folder_without_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)  # a chmod would not stop root
    refuses(folder, "cannot be read: .*Permission denied")


def test_wrong_class_folders(folder: Path) -> None:
    refuses(folder / "red", "need each image in the sub-folder", labels=True)
    (folder / "red").rename(folder.parent / "red")
    refuses(folder, "two sub-folders or more. All images are in 'blue'", labels=True)
    with pytest.raises(InputError, match="two sub-folders"):
        _ = ImageFolder(path=folder).class_names


def test_one_image_cannot_be_cut(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "0.png")
    refuses(tmp_path, "1 examples cannot be cut")


def test_nothing_to_learn(tmp_path: Path) -> None:
    for k in range(3):
        Image.new("L", (4, 4)).save(tmp_path / f"{k}.png")
    with pytest.raises(InputError, match="all values of the images are equal"):
        _ = ImageFolder(path=tmp_path).spec


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "wide", "bomb"])
def test_bad_images_are_named(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for k in range(2):
        path = tmp_path / f"{k}.png"
        Image.fromarray(rng.integers(256, size=(40, 40), dtype=np.uint8)).save(path)
        match damage:
            case "text":
                path.write_text("no image")
            case "empty":
                path.write_bytes(b"")
            case "cut":
                path.write_bytes(path.read_bytes()[:600])
            case "wide":
                Image.fromarray(rng.integers(65536, size=(4, 4), dtype=np.uint16)).save(path)
    if damage == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refuses(tmp_path, r"The image .*[01]\.png (cannot be read: .*Replace|has mode I;16.*8 bits)")
