"""Diffusion SDEs for itoflow: VP, VE, sub-VP, cosine and EDM processes."""
