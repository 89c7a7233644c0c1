"""Placement: which rows a trainer keeps, and when they move."""
