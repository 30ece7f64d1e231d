"""Attention backends for itoflow: torch's fused kernels, plain mathematics, query blocks, and xformers."""
