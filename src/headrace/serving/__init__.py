"""Serving: answers to requests with the newest version of a model."""
