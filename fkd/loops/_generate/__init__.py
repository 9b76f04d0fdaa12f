"""On-policy distillation: batches that the student itself has written."""
