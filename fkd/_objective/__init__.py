"""Objectives: terms over the values of models, as one pure function."""
