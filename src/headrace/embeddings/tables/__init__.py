"""Embedding tables: index of rows by id, admission, eviction, and saved state."""
