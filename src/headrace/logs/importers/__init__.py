"""Imports logs of other shapes: Criteo's text, and logs of clicks in hourly files."""

from headrace.logs.importers.clicks import ClicksConfig, ClicksImport, import_clicks
from headrace.logs.importers.criteo import CriteoConfig, CriteoImport, criteo_schema, import_criteo

__all__ = [
    "ClicksConfig",
    "ClicksImport",
    "CriteoConfig",
    "CriteoImport",
    "criteo_schema",
    "import_clicks",
    "import_criteo",
]
