"""Folders in the layout of diffusers' UNet2DModel: config.json and one file of safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

from pydantic import FiniteFloat
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from itoflow import Backbone, DataSpec, IncompatibleError, ModelFileError, OptionError
from itoflow_unet.diffusers_config import from_config, to_config
from itoflow_unet.diffusers_weights import from_state, to_state
from itoflow_unet.network import ResidualUNet

_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class Checkpoint(Backbone):
    """The U-Net of a checkpoint of diffusers in a local folder, e.g. of google/ddpm-cifar10-32.

    A network of this family predicts eps and sees the step number time_scale t + time_shift; one with Fourier features
    predicts the score and sees the noise level exp(time_scale t + time_shift). Either sees x as it is, not scaled.
    """

    scale_input: ClassVar[bool] = False

    path: str
    """The folder with config.json and the weights as safetensors, or that of a pipeline with the subfolder unet."""
    time_scale: FiniteFloat | None = None
    """See `itoflow_unet.diffusers_config.from_config`; None is 1000, or log(50 / 0.01) with Fourier features."""
    time_shift: FiniteFloat | None = None
    """None is -1, or log(0.01) with Fourier features."""

    def build(self, data: DataSpec) -> nn.Module:
        """The network with its weights.

        Raises:
            ModelFileError: the folder is missing, incomplete or damaged.
            IncompatibleError: the checkpoint cannot be converted, or is not for such data.
        """
        folder = _folder(self.path)
        config = read_config(folder)
        try:
            spec = from_config(config, data, time_scale=self.time_scale, time_shift=self.time_shift)
        except (IncompatibleError, OptionError) as error:
            raise IncompatibleError(f"{folder / _CONFIG}: {error}") from error
        net = spec.build(data)
        assert isinstance(net, ResidualUNet)
        try:
            state = load_file(_weights(folder))
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{_weights(folder)} is damaged: {error}. Copy it again.") from error
        net.load_state_dict(from_state(net, state))
        return net


def save_checkpoint(net: ResidualUNet, data: DataSpec, path: str | os.PathLike[str]) -> Path:
    """Write a folder that `UNet2DModel.from_pretrained` reads.

    Raises:
        IncompatibleError: UNet2DModel has no such network.
        ModelFileError: the folder cannot be written.
    """
    folder, config, state = Path(path), to_config(net.spec, data), to_state(net)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(
            {name: value.contiguous() for name, value in state.items()}, folder / _WEIGHTS, metadata={"format": "pt"}
        )
    except OSError as error:
        raise ModelFileError(f"Cannot write {folder}: {error.strerror or error}.") from error
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        ModelFileError: it is damaged.
    """
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{folder / _CONFIG} is damaged: {error}. Copy it again.") from error
    if not isinstance(config, dict):
        raise ModelFileError(f"{folder / _CONFIG} is damaged: it holds no JSON object. Copy it again.")
    return config


def _folder(path: str) -> Path:
    for folder in (Path(path), Path(path) / "unet"):
        if (folder / _CONFIG).is_file():
            return folder
    raise ModelFileError(f"No checkpoint at {path}: a folder with {_CONFIG} and {_WEIGHTS} is needed, on this machine.")


def _weights(folder: Path) -> Path:
    found = [folder / _WEIGHTS] if (folder / _WEIGHTS).is_file() else sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelFileError(f"{folder} has several files of safetensors: leave one, or call the right one {_WEIGHTS}.")
    raise ModelFileError(
        f"{folder} has no weights as safetensors. Pickled ones (.bin) are not read here: convert them by diffusers' "
        "save_pretrained(..., safe_serialization=True)."
    )
