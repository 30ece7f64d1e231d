"""Samples as pictures: a grid of images or a scatter of points (PNG), and the way there from noise (GIF)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from itoflow import DataSpec, GaussianProcess, GenerativeModel, Step
from itoflow_train.values import Values


def drawable(data: DataSpec) -> bool:
    """Whether examples are images (1 or 3, H, W) or points of a plane (2,)."""
    return data.shape == (2,) or (len(data.shape) == 3 and data.shape[0] in (1, 3))


def picture(x: Tensor, data: DataSpec, *, side: int = 512) -> Image.Image:
    """Samples (N, *S) as one picture: a square grid of images, or points in [-3, 3] standard deviations.

    Arguments:
        side: pixels of a side, about; images are enlarged by a whole number.

    Raises:
        ValueError: the examples are not `drawable`.
    """
    if not drawable(data):
        raise ValueError(f"examples of shape {data.shape} cannot be drawn")
    values = x.detach().float().cpu().numpy()
    return _scatter(values, data, side) if data.shape == (2,) else _grid(values, data, side)


def _grid(values: np.ndarray, data: DataSpec, side: int) -> Image.Image:
    n, channels, height, width = values.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scaled = np.clip((values - data.low) / (data.high - data.low), 0, 1)
    canvas = np.zeros((rows * (height + 1) + 1, columns * (width + 1) + 1, channels))
    for i, image in enumerate(scaled):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    pixels = np.round(canvas * 255).astype(np.uint8)
    drawn = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    zoom = max(1, side // max(drawn.size))
    return drawn.resize((drawn.width * zoom, drawn.height * zoom), Image.Resampling.NEAREST)


def _scatter(values: np.ndarray, data: DataSpec, side: int) -> Image.Image:
    reach = 3 * data.std
    cells = np.floor((values + reach) / (2 * reach) * side).astype(int)
    inside = cells[((cells >= 0) & (cells < side)).all(axis=1)]
    ink = np.zeros((side, side))
    for dx in range(-1, 2):
        for dy in range(-1, 2):
            shifted = np.clip(inside + np.array([dx, dy]), 0, side - 1)
            np.add.at(ink, (side - 1 - shifted[:, 1], shifted[:, 0]), 1)
    return Image.fromarray(np.round(255 * np.exp(-ink)).astype(np.uint8))


class Film:
    """A sampler's callback that keeps frames of the carried state, and writes them as a GIF.

    Each frame is divided by the standard deviation of x_t over that of the data, so that noise and data fill the same
    range. A call that leaves the state as it was (an inner stage of a Runge-Kutta step) gives no frame.

    Arguments:
        model: being sampled.
        values: take its states to the data's units.
        frames: how many to keep at most.
    """

    def __init__(self, model: GenerativeModel, values: Values, frames: int) -> None:
        self.model, self.values, self.frames = model, values, frames
        self.pictures: list[Image.Image] = []
        self._last: Tensor | None = None

    def __call__(self, step: Step) -> None:
        """Keep a frame where one is due."""
        if self._last is not None and torch.equal(step.x, self._last):
            return
        self._last = step.x.clone()
        last = step.calls is not None and step.index == step.calls - 1
        x = step.x if last else step.x * self._scale(step.t)
        drawn = picture(self.values.leave(x), self.values.data, side=256)
        self.pictures.append(drawn.quantize(32))  # noise compresses badly

    def _scale(self, t: float) -> float:
        process, std = self.model.process, self.model.data.std
        if not isinstance(process, GaussianProcess):
            return 1.0
        k = process.kernel(t)
        return std / math.hypot(float(k.alpha) * std, float(k.sigma))

    def write(self, path: Path, *, milliseconds: int = 80) -> None:
        """Write an endless GIF of evenly chosen frames, the last one held for two seconds."""
        count = min(self.frames, len(self.pictures))
        chosen = [self.pictures[-1 - i * len(self.pictures) // count] for i in reversed(range(count))]
        durations = [milliseconds] * (count - 1) + [2000]
        chosen[0].save(path, save_all=True, append_images=chosen[1:], duration=durations, loop=0)
