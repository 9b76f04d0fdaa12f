"""Divergences of predictions."""
