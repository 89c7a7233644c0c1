"""Generates synthetic logs with sessions, skew, drift and a planted teacher, whose best reachable score is known."""

from headrace.logs.generate.bounds import read_bounds
from headrace.logs.generate.presets import PRESETS
from headrace.logs.generate.rows import GeneratedRows, Generator
from headrace.logs.generate.spec import GenerateConfig
from headrace.logs.generate.teacher import WindowBound
from headrace.logs.generate.writer import GeneratedLog, generate_logs, generate_window

__all__ = [
    "PRESETS",
    "GenerateConfig",
    "GeneratedLog",
    "GeneratedRows",
    "Generator",
    "WindowBound",
    "generate_logs",
    "generate_window",
    "read_bounds",
]
