"""State dicts to and from diffusers' UNet2DModel: one table of names, read in both directions.

A tensor here is one tensor there, or several stacked along their first axis: queries, keys and values, and what every
block takes from the time embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from itoflow import ModelFileError
from itoflow_unet.network import ResidualUNet

Table = list[tuple[str, list[str]]]

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers before version 0.17."""


def from_state(net: ResidualUNet, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `net` from that of a UNet2DModel of the same options.

    Raises:
        ModelFileError: tensors are missing, left over, or of the wrong shape.
    """
    theirs = {_renamed(name): value for name, value in state.items()}
    table, own = _table(net), net.state_dict()
    wanted = {name for _, names in table for name in names}
    missing, extra = sorted(wanted - set(theirs)), sorted(set(theirs) - wanted)
    if missing or extra:
        raise ModelFileError(
            f"These weights are not those of the configured network; missing: {missing[:5] or 'none'}, left over: "
            f"{extra[:5] or 'none'}."
        )
    converted = {}
    for name, names in table:
        given, shape = [theirs[n] for n in names], own[name].shape
        rows = sum(len(value) for value in given)
        if rows != shape[0] or any(value[0].numel() != shape[1:].numel() for value in given):
            shapes = ", ".join(str(tuple(value.shape)) for value in given)
            raise ModelFileError(f"{', '.join(names)} have shapes {shapes}; together they are to be {tuple(shape)}.")
        converted[name] = torch.cat([value.reshape(len(value), *shape[1:]) for value in given])
    return converted


def to_state(net: ResidualUNet) -> dict[str, Tensor]:
    """The state of the UNet2DModel that is the same function as `net`."""
    converted: dict[str, Tensor] = {}
    for name, names in _table(net):
        value = net.state_dict()[name]
        sizes = net.parts if name.startswith("modulation.") else [len(value) // len(names)] * len(names)
        converted.update(zip(names, (part.clone() for part in value.split(sizes)), strict=True))
    return converted


def _table(net: ResidualUNet) -> Table:
    own = set(net.state_dict())
    table: Table = []
    for ours, theirs in _modules(net):
        for suffix in ("weight", "bias"):
            if f"{ours}.{suffix}" in own:
                table.append((f"{ours}.{suffix}", [f"{name}.{suffix}" for name in theirs]))
    return table


def _modules(net: ResidualUNet) -> Iterator[tuple[str, list[str]]]:
    yield "enter", ["conv_in"]
    yield "embed.features", ["time_proj"]
    yield "embed.first", ["time_embedding.linear_1"]
    yield "embed.second", ["time_embedding.linear_2"]
    yield "embed.label", ["class_embedding"]
    yield "leave.norm", ["conv_norm_out"]
    yield "leave.conv", ["conv_out"]
    blocks = list(_blocks(net))
    yield "modulation", [f"{theirs}.time_emb_proj" for _, theirs in blocks]
    for ours, theirs in blocks:
        for name, other in (("norm_1", "norm1"), ("conv_1", "conv1"), ("norm_2", "norm2"), ("conv_2", "conv2")):
            yield f"{ours}.{name}", [f"{theirs}.{other}"]
        yield f"{ours}.project", [f"{theirs}.conv_shortcut"]
    for ours, theirs in _attentions(net):
        yield f"{ours}.norm", [f"{theirs}.group_norm"]
        yield f"{ours}.qkv", [f"{theirs}.to_{name}" for name in "qkv"]
        yield f"{ours}.out", [f"{theirs}.to_out.0"]
    for side, change in (("down", "downsamplers"), ("up", "upsamplers")):
        for level in range(len(net.down)):
            ours, theirs = f"{side}.{level}", f"{side}_blocks.{level}"
            yield f"{ours}.change.conv.conv", [f"{theirs}.{change}.0.conv"]
            yield f"{ours}.image", [f"{theirs}.skip_conv"]
            yield f"{ours}.image.norm", [f"{theirs}.skip_norm"]
            yield f"{ours}.image.conv", [f"{theirs}.skip_conv"]


def _blocks(net: ResidualUNet) -> Iterator[tuple[str, str]]:
    """The residual blocks, in the order in which they take their parts of the time embedding."""
    spec = net.spec

    def side(name: str, change: str, count: int, changing: range) -> Iterator[tuple[str, str]]:
        for level in range(len(net.down)):
            for i in range(count):
                yield f"{name}.{level}.blocks.{i}", f"{name}_blocks.{level}.resnets.{i}"
            if level in changing and spec.resample in ("residual", "residual-fir"):
                theirs = f"resnet_{name}" if spec.progressive == "skips" else f"{change}.0"
                yield f"{name}.{level}.change.block", f"{name}_blocks.{level}.{theirs}"

    yield from side("down", "downsamplers", spec.blocks, range(len(net.down) - 1))
    if spec.middle:
        yield "middle.before", "mid_block.resnets.0"
        yield "middle.after", "mid_block.resnets.1"
    yield from side("up", "upsamplers", spec.blocks + 1, range(len(net.down) - 1))


def _attentions(net: ResidualUNet) -> Iterator[tuple[str, str]]:
    yield "middle.attend", "mid_block.attentions.0"
    for level in range(len(net.down)):
        for i in range(net.spec.blocks):
            yield f"down.{level}.attentions.{i}", f"down_blocks.{level}.attentions.{i}"
        for i in range(net.spec.blocks + 1):
            theirs = 0 if net.spec.attention_up == "last" else i
            yield f"up.{level}.attentions.{i}", f"up_blocks.{level}.attentions.{theirs}"


def _renamed(name: str) -> str:
    layer, _, suffix = name.rpartition(".")
    stem, _, last = layer.rpartition(".")
    return f"{stem}.{_OLD[last]}.{suffix}" if last in _OLD and ".attentions." in layer else name
