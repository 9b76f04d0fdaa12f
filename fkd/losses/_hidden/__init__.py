"""Hidden states, and stacks of layers."""
