"""Diffusion transformers for itoflow: the networks of DiT and SiT."""
