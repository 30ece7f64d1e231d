"""Residual U-Net backbones for itoflow, in 1, 2 and 3 dimensions."""
