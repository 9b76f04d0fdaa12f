"""The picture of an objective."""
