"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_backbones() -> list[Registration]:
    """One backbone."""
    return [Registration("mlp", "itoflow_mlp.mlp:MLP", "Residual MLP for vectors and small images")]
