"""Uses of trained models: metrics and predictions on logs, and exports for serving."""

from headrace.scoring.export import ExportedModel, export_model
from headrace.scoring.scorer import Scorer

__all__ = ["ExportedModel", "Scorer", "export_model"]
