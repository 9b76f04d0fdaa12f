"""One training step: gradient, clipping, update."""
