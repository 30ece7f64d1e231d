"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_objectives() -> list[Registration]:
    """Objectives for processes with a Gaussian kernel, and for those without."""
    return [
        Registration(
            "denoising-score-matching",
            "itoflow_score.denoising:DenoisingScoreMatching",
            "Regress x0, noise, v, velocity, score or F from noisy data",
            aliases=("dsm",),
        ),
        Registration("edm", "itoflow_score.edm:EDMObjective", "EDM's preconditioning, loss weight and noise levels"),
        Registration(
            "implicit-score-matching",
            "itoflow_score.implicit:ImplicitScoreMatching",
            "Score and exact divergence at simulated x_t: for processes without a closed-form kernel",
            aliases=("ism",),
        ),
        Registration(
            "sliced-score-matching",
            "itoflow_score.sliced:SlicedScoreMatching",
            "The same with the divergence on random directions: for many dimensions",
            aliases=("ssm",),
        ),
    ]
