"""Imports logs in other formats: CSV, JSON lines, Criteo's text, and click logs in hourly files."""

from headrace.logs.importers.clicks import ClicksConfig, ClicksImport, import_clicks
from headrace.logs.importers.criteo import CriteoConfig, CriteoImport, criteo_schema, import_criteo
from headrace.logs.importers.text import TextImport, import_text, text_kind
from headrace.logs.importers.text_plan import LABEL, TextConfig

__all__ = [
    "LABEL",
    "ClicksConfig",
    "ClicksImport",
    "CriteoConfig",
    "CriteoImport",
    "TextConfig",
    "TextImport",
    "criteo_schema",
    "import_clicks",
    "import_criteo",
    "import_text",
    "text_kind",
]
