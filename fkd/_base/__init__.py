"""What every other room may import: means, types, trees, errors, records of arguments."""
