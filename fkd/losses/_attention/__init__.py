"""Attention maps, and relations of tokens."""
