"""What every other room of `loops` may import: states, seeds, files, errors, compiling."""
