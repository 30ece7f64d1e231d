"""A small convolutional backbone for itoflow."""
