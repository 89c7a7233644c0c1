"""Test helpers, for headrace and for code that uses it."""
