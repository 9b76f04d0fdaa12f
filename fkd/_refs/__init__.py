"""Refs: where a value of a step comes from, as immutable code that compares by what it says."""
