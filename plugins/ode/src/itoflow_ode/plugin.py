"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_samplers() -> list[Registration]:
    """Samplers that choose their steps, and integrate for the likelihood in both directions."""
    return [
        Registration("dopri5", "itoflow_ode.dopri5:Dopri5", "Dormand-Prince 5(4), adaptive steps, runs both ways"),
        Registration("dopri8", "itoflow_ode.dopri8:Dopri8", "Dormand-Prince 8(7), for tight tolerances, both ways"),
    ]
