"""Writes a guessed schema as readable YAML, with reasons as comments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from headrace.logs.inspection.guesses import Guess
from headrace.logs.schema import Schema
from headrace.messages import one_line

__all__ = ["schema_to_yaml"]


def schema_to_yaml(schema: Schema, guesses: Iterable[Guess]) -> str:
    """Format a schema as YAML that `Schema.from_yaml` reads.

    Args:
        schema: The schema.
        guesses: Guesses of all columns, whose reasons are added as comments at the top.
    """
    values = schema.model_dump(mode="json", exclude_defaults=True)
    plain = {key: _short(value) for key, value in values.items()}
    lines = ["# Guessed by headrace inspect; correct it if needed. Columns not named here are not read."]
    lines += [f"#   {one_line(guess.name)}: {guess.part}, {guess.reason}" for guess in guesses]
    text = yaml.safe_dump({"version": 1} | plain, sort_keys=False, default_flow_style=None, allow_unicode=True)
    return "\n".join(lines) + "\n" + text


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(item) for item in value]
    return value["name"] if isinstance(value, dict) and value.keys() == {"name"} else value
