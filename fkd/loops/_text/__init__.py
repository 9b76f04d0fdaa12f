"""From text to the batches of a language model: conversations, documents, two tokenizers."""
