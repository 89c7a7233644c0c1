"""Where the rows of tables are stored: formats and media."""
