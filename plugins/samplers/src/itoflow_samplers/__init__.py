"""Samplers for itoflow: each carries x from the prior at t_max to data at t_min."""
