"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_processes() -> list[Registration]:
    """Paths between data and noise, and between two data sets."""
    return [
        Registration(
            "linear",
            "itoflow_flow.linear:Linear",
            "Straight line from data to noise (rectified flow, flow matching)",
            aliases=("condot", "rectified-flow"),
        ),
        Registration(
            "trigonometric", "itoflow_flow.trigonometric:Trigonometric", "Quarter circle, variance preserving"
        ),
        Registration("polynomial", "itoflow_flow.polynomial:Polynomial", "Straight line at a polynomial pace"),
        Registration("sb", "itoflow_flow.bridge:BrownianBridge", "Brownian bridge between two data sets"),
        Registration(
            "interpolant", "itoflow_flow.interpolant:Interpolant", "Stochastic interpolant between two data sets"
        ),
    ]


@hookimpl
def itoflow_objectives() -> list[Registration]:
    """Regression of velocities."""
    return [
        Registration(
            "flow-matching",
            "itoflow_flow.matching:FlowMatching",
            "Regress the velocity of paths between the two ends, coupled",
            aliases=("cfm",),
        )
    ]


@hookimpl
def itoflow_couplings() -> list[Registration]:
    """Which noise goes with which data."""
    return [
        Registration("independent", "itoflow_flow.independent:Independent", "Data and noise drawn independently"),
        Registration(
            "optimal-transport",
            "itoflow_flow.optimal_transport:OptimalTransport",
            "The pairing of least squared distance within a batch, exact",
            aliases=("ot",),
        ),
        Registration("sinkhorn", "itoflow_flow.sinkhorn:Sinkhorn", "Pairs drawn from the entropic transport plan"),
        Registration(
            "conditional-optimal-transport",
            "itoflow_flow.conditional_transport:ConditionalTransport",
            "Optimal transport that keeps the base law of each condition (C2OT)",
            aliases=("c2ot",),
        ),
    ]
