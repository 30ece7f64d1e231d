"""What this distribution registers."""

from __future__ import annotations

from itoflow import Registration, hookimpl


@hookimpl
def itoflow_attentions() -> list[Registration]:
    """The backends; `auto` considers them in the order sdpa, chunked, math, xformers; see `preference_for`."""
    return [
        Registration("sdpa", "itoflow_attention.sdpa:SDPA", "torch's fused kernels: flash, efficient, cuDNN"),
        Registration("math", "itoflow_attention.math:Math", "Plain softmax, differentiable twice and in forward mode"),
        Registration("chunked", "itoflow_attention.chunked:Chunked", "Query blocks, recomputed, linear memory"),
        Registration("xformers", "itoflow_attention.xformers:Xformers", "xformers' kernels, on CUDA, when named"),
    ]


@hookimpl
def itoflow_commands() -> list[Registration]:
    """The command `itoflow attention`."""
    return [
        Registration("attention", "itoflow_attention.commands:attention", "Which backend serves which call, or why not")
    ]
