"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_commands() -> list[Registration]:
    """The commands `itoflow train`, `itoflow sample`, `itoflow evaluate` and `itoflow compare-samplers`."""
    return [
        Registration("train", "itoflow_train.commands:train", "Train the model of a recipe and report its quality"),
        Registration("sample", "itoflow_train.commands:sample", "Draw samples from a trained run or a saved model"),
        Registration("evaluate", "itoflow_train.commands:evaluate", "Nats and bits per dimension of a run's data"),
        Registration(
            "compare-samplers",
            "itoflow_train.compare_samplers:compare_samplers",
            "Error against evaluations of samplers, on a run or an exact law; recommends one for a budget",
        ),
    ]
