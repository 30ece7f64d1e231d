"""Training for itoflow: recipes, the training loop, run folders, and reports of sample quality."""
