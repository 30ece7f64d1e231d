"""Options to and from the configuration of diffusers' UNet2DModel, without importing diffusers.

What has no counterpart on the other side is refused, so that a converted network is the same function. `UNet2DModel`
sees a step number or a noise level; here that is time_scale t + time_shift, or its logarithm with Fourier features.

References:
    https://huggingface.co/docs/diffusers/api/models/unet2d, version 0.42.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from itoflow import DataSpec, IncompatibleError
from itoflow_unet.unet import Resample, UNet

_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""Names and defaults of the configuration."""

_UP = {
    "DownBlock2D": "UpBlock2D",
    "AttnDownBlock2D": "AttnUpBlock2D",
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
    "SkipDownBlock2D": "SkipUpBlock2D",
    "AttnSkipDownBlock2D": "AttnSkipUpBlock2D",
}
"""Kinds of levels, down and up."""


def from_config(
    config: Mapping[str, Any], data: DataSpec, *, time_scale: float | None = None, time_shift: float | None = None
) -> UNet:
    """The options of the same network.

    Arguments:
        config: of a UNet2DModel; what is missing has its default; names beginning with an underscore are passed over.
        data: what the network is for: its size says at which resolution each level works.
        time_scale, time_shift: the step number is time_scale t + time_shift, by default 1000 t - 1, as step k of a
            chain of 1000 ends at t = (k + 1) / 1000; with Fourier features this is the logarithm of the noise level,
            by default that from 0.01 to 50 of the variance-exploding process.

    Raises:
        IncompatibleError: the configuration has something that this U-Net has not, or does not fit the data.
    """
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    unknown = sorted(name for name in set(given) - set(_DEFAULTS) if given[name] is not None)
    model = config.get("_class_name", "UNet2DModel")
    _need(model == "UNet2DModel", f"it is of a {model}, not of a UNet2DModel")
    _need(not unknown, f"it has options that UNet2DModel did not have in version 0.42: {', '.join(unknown)}")
    c = {**_DEFAULTS, **given}
    _need(len(data.shape) == 3, f"UNet2DModel is for images; these examples have shape {data.shape}")
    _need(c["act_fn"] in ("silu", "swish"), f"act_fn = {c['act_fn']!r}, and this U-Net has SiLU only")
    _need(c["class_embed_type"] is None, f"class_embed_type = {c['class_embed_type']!r}; only None is known")
    _need(c["mid_block_type"] in (None, "UNetMidBlock2D"), f"mid_block_type = {c['mid_block_type']!r}")
    _need(c["in_channels"] == c["out_channels"], "in_channels and out_channels differ")
    _need(c["in_channels"] == data.shape[0], f"it is for {c['in_channels']} channels; the data have {data.shape[0]}")
    _need(c["num_class_embeds"] == data.classes, f"num_class_embeds is not classes = {data.classes}")
    _need(data.vector is None, "UNet2DModel has no conditioning vector, and the data have one")
    _need(c["resnet_time_scale_shift"] in ("default", "scale_shift"), "its resnet_time_scale_shift is unknown")
    _need(c["time_embedding_type"] in ("positional", "fourier"), "its time_embedding_type is unknown")

    for name in ("down_block_types", "up_block_types", "block_out_channels"):
        kind = int if name == "block_out_channels" else str
        listed = isinstance(c[name], (list, tuple)) and c[name] and all(isinstance(entry, kind) for entry in c[name])
        _need(bool(listed), f"{name} = {c[name]!r} is no list of levels")
    kinds = [name.removeprefix("UNetRes") for name in c["down_block_types"]]
    ups = [name.removeprefix("UNetRes") for name in c["up_block_types"]]
    _need(all(kind in _UP for kind in kinds), f"its kinds of levels are not all of {', '.join(_UP)}")
    _need(ups == [_UP[kind] for kind in reversed(kinds)], "its levels on the way up do not mirror those going down")
    widths = c["block_out_channels"]
    _need(len(widths) == len(kinds), "block_out_channels and down_block_types differ in number")
    _need(c["downsample_type"] == c["upsample_type"], "downsample_type and upsample_type differ")
    # A level halves after itself on the way down, and doubles after itself on the way up, the first one not.
    changes = {_change(kind, c["downsample_type"]) for kind in kinds} if len(kinds) > 1 else {_change(kinds[0], "conv")}
    skips = {"Skip" in kind for kind in kinds}
    _need(len(changes) == 1 and len(skips) == 1, f"its levels change in several ways: {', '.join(kinds)}")
    with_skips = skips.pop()
    _need(not with_skips or data.shape[0] == 3, "its levels have skips from and to three channels")
    _need(c["downsample_padding"] in (0, 1), f"downsample_padding = {c['downsample_padding']!r}, not 0 or 1")

    fourier = c["time_embedding_type"] == "fourier"
    _need(fourier or widths[0] % 2 == 0, f"{widths[0]} channels are odd, so that one feature of its time is always 0")
    spec = UNet(
        channels=widths[0],
        multipliers=tuple(width / widths[0] for width in widths),
        blocks=c["layers_per_block"],
        head_size=c["attention_head_dim"],
        resample=changes.pop(),
        pad_end=c["downsample_padding"] == 0,
        progressive="skips" if with_skips else "none",
        scale_shift=c["resnet_time_scale_shift"] == "scale_shift",
        embedding=c["time_embedding_dim"],
        time="fourier" if fourier else "sinusoidal",
        time_scale=time_scale if time_scale is not None else math.log(50 / 0.01) if fourier else 1000.0,
        time_shift=time_shift if time_shift is not None else math.log(0.01) if fourier else -1.0,
        cosine_first=c["flip_sin_to_cos"],
        frequency_shift=c["freq_shift"],
        dropout=c["dropout"],
        groups=None if with_skips else c["norm_num_groups"],
        epsilon=c["norm_eps"],
        rescale=math.sqrt(2) if with_skips else 1.0,
        rescale_middle=c["mid_block_scale_factor"],
        middle=c["mid_block_type"] is not None,
        middle_attention=c["add_attention"],
        middle_norm=c["resnet_time_scale_shift"] == "default" or c["attn_norm_num_groups"] is not None,
        attention_up="last" if with_skips else "each",
        center=c["center_input_sample"],
        divide_output=fourier,
    )
    spec = spec.replace(
        attention=tuple(size for size, kind in zip(spec.sizes(data), kinds, strict=True) if kind.startswith("Attn"))
    )
    _check_groups(spec, c, kinds)
    return spec


def to_config(spec: UNet, data: DataSpec) -> dict[str, Any]:
    """The configuration of the same network; see `from_config` for what the network's time is there.

    Raises:
        IncompatibleError: names the options that UNet2DModel has not.
    """
    sizes, widths = spec.sizes(data), spec.widths
    most = 2 ** (len(widths) - 1)
    _need(
        all(side % most == 0 for side in data.shape[1:]),
        f"UNet2DModel with {len(widths)} levels runs on sides that are multiples of {most}; these are {data.shape[1:]}",
    )
    fourier, residual = spec.time == "fourier", spec.resample == "residual"
    attends = [size in spec.attention for size in sizes]
    if spec.progressive == "skips":
        kinds = ["AttnSkipDownBlock2D" if here else "SkipDownBlock2D" for here in attends]
    else:
        plain = "ResnetDownsampleBlock2D" if residual else "DownBlock2D"
        kinds = ["AttnDownBlock2D" if here else plain for here in attends]
    groups = {spec.groups_of(width) for width in _normalised(spec)}
    heads = {width // spec.heads_of(width) for width, here in zip(widths, attends, strict=True) if here}
    if spec.middle and spec.middle_attention:
        heads.add(widths[-1] // spec.heads_of(widths[-1]))
    single = spec.heads is None and spec.head_size is None
    config = {
        **_DEFAULTS,
        "sample_size": list(data.shape[1:]) if len(set(data.shape[1:])) > 1 else data.shape[-1],
        "in_channels": data.shape[0],
        "out_channels": data.shape[0],
        "center_input_sample": spec.center,
        "time_embedding_type": "fourier" if fourier else "positional",
        "time_embedding_dim": spec.embedding,
        "freq_shift": spec.frequency_shift,
        "flip_sin_to_cos": spec.cosine_first,
        "down_block_types": kinds,
        "mid_block_type": "UNetMidBlock2D" if spec.middle else None,
        "up_block_types": [_UP[kind] for kind in reversed(kinds)],
        "block_out_channels": list(widths),
        "layers_per_block": spec.blocks,
        "mid_block_scale_factor": spec.rescale if spec.rescale_middle is None else spec.rescale_middle,
        "downsample_padding": 0 if spec.pad_end else 1,
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "dropout": spec.dropout,
        "attention_head_dim": None if single else min(heads, default=8),
        "norm_num_groups": None if spec.progressive == "skips" else min(groups),
        "attn_norm_num_groups": spec.groups_of(widths[-1]) if spec.middle_norm else None,
        "norm_eps": spec.epsilon,
        "resnet_time_scale_shift": "scale_shift" if spec.scale_shift else "default",
        "add_attention": spec.middle_attention,
        "num_class_embeds": data.classes,
    }
    back = from_config(config, data, time_scale=spec.time_scale, time_shift=spec.time_shift)
    wanted, got = _function(spec, data), _function(back, data)
    different = [f"{name} = {wanted[name]!r} (there: {got[name]!r})" for name in wanted if wanted[name] != got[name]]
    _need(not different, f"UNet2DModel has no network with {'; '.join(different)}")
    return {"_class_name": "UNet2DModel", **config}


def _function(spec: UNet, data: DataSpec) -> dict[str, Any]:
    """The options that change the function, as they act."""
    chosen = {name: getattr(spec, name) for name in type(spec).model_fields if name not in ("backend", "zero_init")}
    attention = tuple(size for size in spec.sizes(data) if size in spec.attention)
    centre = spec.middle and spec.middle_attention
    attends = [spec.widths[spec.sizes(data).index(size)] for size in attention] + [spec.widths[-1]] * centre
    acting: dict[str, Any] = {
        **chosen,
        "multipliers": spec.widths,
        "entry": spec.inside(0),
        "attention": attention,
        "groups": [spec.groups_of(width) for width in _normalised(spec)],
        "heads": [spec.heads_of(width) for width in attends],
        "head_size": None,
        "embedding": spec.embedding or 4 * spec.channels,
        "rescale_middle": spec.rescale if spec.rescale_middle is None else spec.rescale_middle,
    }
    if spec.time == "fourier":  # `weights` brings the frequencies
        acting |= {"fourier_scale": None, "cosine_first": None, "frequency_shift": None}
    else:
        acting |= {"fourier_scale": None}
    if spec.resample != "residual":
        acting["project_resampled"] = None
    if spec.resample != "conv":
        acting["pad_end"] = None
    if not attention:
        acting["attention_up"] = None
    if not centre:
        acting["middle_norm"] = None
    return acting


def _normalised(spec: UNet) -> Sequence[int]:
    """The numbers of channels that the network normalises."""
    widths = spec.widths
    found = {*widths, *(2 * width for width in widths)}
    found |= {a + b for a, b in pairwise(widths)}
    return sorted(found)


def _change(kind: str, change: str) -> Resample:
    if "Skip" in kind:
        return "residual-fir"
    if kind == "AttnDownBlock2D":
        _need(change in ("conv", "resnet"), f"downsample_type = {change!r} is unknown")
        return "residual" if change == "resnet" else "conv"
    return "residual" if kind == "ResnetDownsampleBlock2D" else "conv"


def _check_groups(spec: UNet, c: Mapping[str, Any], kinds: Sequence[str]) -> None:
    """Levels with skips choose their groups by rules of their own; the rest of that network by norm_num_groups."""
    widths = spec.widths
    if spec.progressive == "skips":
        narrow = [n for n in _normalised(spec) if n < 4 or n % min(n // 4, 32)]
        _need(not narrow, f"its levels of {narrow} channels do not divide into groups")
        fixed = [32 for _ in kinds] if c["norm_num_groups"] is None else [c["norm_num_groups"]]
        asked = {spec.groups_of(widths[0]), spec.groups_of(widths[-1])} if c["norm_num_groups"] is not None else set()
        _need(asked <= set(fixed), f"norm_num_groups = {c['norm_num_groups']} differs from the groups of its levels")
        for width, kind in zip(widths, kinds, strict=True):
            wide = not kind.startswith("Attn") or width >= 128
            _need(wide, f"its levels with attention have {width} channels; the same groups need 128")
    else:
        _need(isinstance(c["norm_num_groups"], int), "norm_num_groups is missing")
    groups = c["attn_norm_num_groups"]
    _need(
        groups is None or groups == spec.groups_of(widths[-1]),
        f"attn_norm_num_groups = {groups} differs from the groups of its other layers",
    )


def _need(condition: bool, reason: str) -> None:
    if not condition:
        raise IncompatibleError(f"This configuration of diffusers cannot be converted: {reason}.")
