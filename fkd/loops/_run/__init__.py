"""The loop around the step: evaluation, checkpoints, resume, signals."""
