"""Storage of rows: formats and media."""
