"""What changed in a table group since a version, and how it travels."""
