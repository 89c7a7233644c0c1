"""What changed in a table since a version, and how it travels."""
