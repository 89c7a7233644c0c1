"""Transformations: the operations of pipeline stages, one per file."""
