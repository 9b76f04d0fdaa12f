"""What `python -m fkd` can do: one command a file."""
