"""From an id to the row that holds its embedding: direct, hashed, or exact and growing."""

from headrace.embeddings.directory.collisionless import CollisionlessDirectory
from headrace.embeddings.directory.direct import is_row
from headrace.embeddings.directory.hashed import hashed_row

__all__ = ["CollisionlessDirectory", "hashed_row", "is_row"]
