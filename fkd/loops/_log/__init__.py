"""What a run says: lines, TensorBoard events, a progress bar."""
