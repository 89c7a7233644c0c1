"""Index from ids to embedding rows: direct, hashed, or collisionless and growing."""

from headrace.embeddings.tables.index.direct import is_row
from headrace.embeddings.tables.index.hashed import hashed_row

__all__ = ["hashed_row", "is_row"]
