"""Losses against labels."""
