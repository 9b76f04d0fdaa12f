"""Contrastive and self-supervised losses, with a state."""
