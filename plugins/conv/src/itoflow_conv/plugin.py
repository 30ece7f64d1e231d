"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_backbones() -> list[Registration]:
    """One backbone."""
    return [Registration("resnet", "itoflow_conv.resnet:ResNet", "Residual convolutions on two scales, small images")]
