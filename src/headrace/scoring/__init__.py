"""Trained models at work: metrics and predictions over logs, and exports to take elsewhere."""

from headrace.scoring.export import ExportedModel, export_model
from headrace.scoring.scorer import Scorer

__all__ = ["ExportedModel", "Scorer", "export_model"]
