"""Helpers for tests of headrace and of code that builds on it."""
