"""Forward only: metrics on held-out batches, outputs of a model, similarity of layers."""
