"""The teacher's logits and temperatures, before they are compared."""
