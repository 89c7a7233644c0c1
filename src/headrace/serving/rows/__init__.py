"""Rows for servers that do not have them: from memory nodes, through a cache."""
