"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_processes() -> list[Registration]:
    """The SDEs."""
    return [
        Registration("vp", "itoflow_sde.vp:VP", "Variance preserving SDE, linear beta (DDPM)"),
        Registration("ve", "itoflow_sde.ve:VE", "Variance exploding SDE, geometric sigma (NCSN)"),
        Registration("subvp", "itoflow_sde.subvp:SubVP", "Sub-variance-preserving SDE"),
        Registration("cosine", "itoflow_sde.cosine:Cosine", "Variance preserving, cosine schedule (improved DDPM)"),
        Registration("edm", "itoflow_sde.edm:EDM", "Variance exploding with sigma proportional to time (EDM)"),
    ]
