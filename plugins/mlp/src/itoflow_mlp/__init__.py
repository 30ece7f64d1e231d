"""A residual multilayer perceptron backbone for itoflow."""
