"""The state of training, left in the run folder at every checkpoint, from which an interrupted run goes on exactly.

state/step-000500/   what accelerate saves: weights, optimiser, moving average, random states; and a file per process

Only the last is kept. It gets its name when it is complete, so that an interruption meanwhile leaves the one before.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from itoflow import InputError

Own = dict[str, Any]
"""What a process adds: numbers and tensors by name, `step` among them."""


def save_state(accelerator: Accelerator, folder: Path, own: Own) -> None:
    """Leave the state after `own["step"]` steps in `folder`; all processes together."""
    done = folder / f"step-{own['step']:06d}"
    partial = done.with_suffix(".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial), safe_serialization=False)  # as they lie, which safetensors would change
    torch.save({**own, **_of(accelerator)}, partial / _file(accelerator))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(done, ignore_errors=True)
        partial.rename(done)
        for other in set(folder.iterdir()) - {done}:
            shutil.rmtree(other, ignore_errors=True)


def load_state(accelerator: Accelerator, state: Path) -> Own:
    """Take up a complete state, all processes together; what this process had added.

    Raises:
        InputError: it was left by another number of processes, or on another kind of device.
    """
    here, there = _of(accelerator), _own(next(state.glob("process-*.pt")))
    if different := [name for name, value in here.items() if there[name] != value]:
        was, now = (", ".join(f"{name} = {of[name]}" for name in different) for of in (there, here))
        raise InputError(f"{state} was left with {was}, and goes on with the same only. Here: {now}.")
    accelerator.load_state(str(state))
    return _own(state / _file(accelerator))


def last_state(folder: Path) -> Path | None:
    """The folder of the last complete state, None where there is none."""
    return max(folder.glob("step-*[0-9]"), default=None, key=lambda path: int(path.name.removeprefix("step-")))


def _own(file: Path) -> Own:
    own: Own = torch.load(file, map_location="cpu", weights_only=True)
    return own


def _of(accelerator: Accelerator) -> Own:
    return {"processes": accelerator.num_processes, "device": accelerator.device.type}


def _file(accelerator: Accelerator) -> str:
    return f"process-{accelerator.process_index}.pt"
