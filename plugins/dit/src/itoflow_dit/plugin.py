"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_backbones() -> list[Registration]:
    """The transformer, and its presets."""
    presets = "itoflow_dit.presets"
    return [
        Registration("dit", "itoflow_dit.dit:DiT", "Diffusion transformer for images and sequences"),
        Registration("dit-s", f"{presets}:DiTS", "DiT-S, 12 blocks of width 384: 33 M parameters"),
        Registration("dit-b", f"{presets}:DiTB", "DiT-B, 12 blocks of width 768: 130 M parameters"),
        Registration("dit-l", f"{presets}:DiTL", "DiT-L, 24 blocks of width 1024: 458 M parameters"),
        Registration("dit-xl", f"{presets}:DiTXL", "DiT-XL, 28 blocks of width 1152: 675 M parameters"),
    ]
