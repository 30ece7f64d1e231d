"""Score-matching objectives for itoflow."""
