"""From an id to the row that holds its embedding: direct, hashed, or exact and growing."""

from headrace.embeddings.tables.index.direct import is_row
from headrace.embeddings.tables.index.hashed import hashed_row

__all__ = ["hashed_row", "is_row"]
