"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_commands() -> list[Registration]:
    """The commands `itoflow train` and `itoflow sample`."""
    return [
        Registration("train", "itoflow_train.commands:train", "Train the model of a recipe and report its quality"),
        Registration("sample", "itoflow_train.commands:sample", "Draw samples from a trained run or a saved model"),
    ]
