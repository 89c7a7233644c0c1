"""Transformations: what the stages of a pipeline do to rows, one a file."""
