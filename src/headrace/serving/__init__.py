"""Serving: answers to requests with the newest version of a model."""

from headrace.serving.client import Client, Refused, Scores

__all__ = ["Client", "Refused", "Scores"]
