"""Relations of the samples of a batch, embeddings, ranking."""
