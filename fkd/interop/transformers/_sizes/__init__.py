"""Models that begin as a smaller or a larger one: what their axes stand for, cut and grow."""
