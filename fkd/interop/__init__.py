"""Boundaries: transformers, the KnowledgeDistillation package, other people's loops."""
