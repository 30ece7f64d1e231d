"""Adaptive solvers of the probability-flow ODE for itoflow."""
