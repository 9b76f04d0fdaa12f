"""Losses of your own."""
