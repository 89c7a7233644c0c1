"""Observability: metrics, decisions with their reasons, progress, and an HTML report."""
