"""From an id to the row that holds its embedding: direct, hashed, or exact and growing."""

from headrace.embeddings.directory.collisionless import NEW, CollisionlessDirectory
from headrace.embeddings.directory.direct import is_row
from headrace.embeddings.directory.hashed import hashed_row

__all__ = ["NEW", "CollisionlessDirectory", "hashed_row", "is_row"]
