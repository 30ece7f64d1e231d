"""A training step of the U-Net against diffusers' UNet2DModel with the same weights: time, peak memory, what gave it.

Minima of interleaved rounds of one run, each in an order of its own, as a step is faster or slower by what ran before
it; batch 16 of 3x32x32, 6.47 M parameters (64-128-128, attention at 16x16). Peak memory is that of a process of its
own, over what it held before its first step. Needs diffusers: pip install diffusers

    python tests/benchmarks/unet_speed.py [THREADS] [ROUNDS] [compile]

With `compile` also under torch.compile, whose compilation it times, some minutes.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F

from itoflow import DataSpec
from itoflow_attention.chunked import Chunked
from itoflow_unet import winograd
from itoflow_unet.diffusers_config import from_config
from itoflow_unet.diffusers_weights import from_state
from itoflow_unet.norm import Norm

CONFIG = {
    "sample_size": 32,
    "block_out_channels": (64, 128, 128),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


def networks() -> dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    theirs = UNet2DModel(**CONFIG)
    data = DataSpec(shape=(3, 32, 32))
    ours = from_config(theirs.config, data).build(data)
    ours.load_state_dict(from_state(ours, theirs.state_dict()))
    apart = patch.object(Norm, "silu", lambda norm, x, then: then(F.silu(nn.GroupNorm.forward(norm, x))))
    direct, tiles = (patch.object(winograd, "pace", lambda pace=pace: pace) for pace in (0.0, math.inf))
    fused = patch.object(Chunked, "preference_for", lambda backend, call: backend.preference)

    def without(change: object) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with change:  # type: ignore[attr-defined]
                return ours(x, t, {})

        return call

    return {
        "diffusers": lambda x, t: theirs(x, 1000 * t - 1).sample,
        "itoflow": lambda x, t: ours(x, t, {}),
        "norm and SiLU apart": without(apart),
        "torch's attention": without(fused),
        "direct convolutions": without(direct),
        "Winograd's convolutions": without(tiles),
    }


def step(call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], half: bool) -> None:
    x, t = torch.randn(16, 3, 32, 32), torch.rand(16)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = call(x, t)
    y.float().square().mean().backward()


def resident(field: str) -> float:
    """MB of memory of this process, as Linux counts it: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak(name: str, half: bool) -> None:
    """MB that three steps need at most, in this process."""
    call = networks()[name]
    before = resident("VmRSS")
    for _ in range(3):
        step(call, half)
    print(resident("VmHWM") - before)


def compiled(call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """By torch.compile, ready; prints the seconds that this took."""
    fast = torch.compile(call)
    for half in (False, True):
        start = time.perf_counter()
        step(fast, half)
        print(f"compiled for {'bfloat16' if half else 'float32'} in {time.perf_counter() - start:.0f} s")
    return fast


def main(threads: int = 1, rounds: int = 7, *, compile: bool = False) -> None:
    torch.set_num_threads(threads)
    calls, best = networks(), dict[tuple[str, bool], float]()
    if compile:
        calls["torch.compile"] = compiled(calls["itoflow"])
    each, draw = [(name, half) for half in (False, True) for name in calls], random.Random(0)
    for repeat in range(rounds + 1):
        for name, half in draw.sample(each, len(each)) if repeat else each:
            start = time.perf_counter()
            step(calls[name], half)
            if repeat:
                best[name, half] = min(best.get((name, half), torch.inf), time.perf_counter() - start)
    memory = dict[tuple[str, bool], float]()
    for name, half in each:
        if name == "torch.compile":  # what it needs to compile is not what a step needs
            memory[name, half] = math.nan
            continue
        command = [sys.executable, __file__, "peak", name, str(int(half)), str(threads)]
        memory[name, half] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"training step, {threads} threads, minima of {rounds}; ratios to diffusers in float32")
    print(f"{'':24}{'dtype':10}{'s':>8}{'ratio':>8}{'peak MB':>10}{'ratio':>8}")
    for name, half in each:
        dtype, mb, seconds = "bfloat16" if half else "float32", memory[name, half], best[name, half]
        ratios = seconds / best["diffusers", False], mb / memory["diffusers", False]
        print(f"{name:24}{dtype:10}{seconds:8.3f}{ratios[0]:8.2f}{mb:10.0f}{ratios[1]:8.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        torch.set_num_threads(int(sys.argv[4]))
        peak(sys.argv[2], sys.argv[3] == "1")
    else:
        main(*map(int, sys.argv[1:3]), compile=sys.argv[3:] == ["compile"])
