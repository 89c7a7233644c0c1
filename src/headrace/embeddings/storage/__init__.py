"""Where the rows of a table are stored: formats and media."""
