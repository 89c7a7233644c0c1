"""Configs read from YAML: checked once, with one clear line for each mistake."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from headrace.errors import ConfigError

__all__ = ["Config", "first_mistake", "read_yaml"]


class Config(BaseModel):
    """Base of every config: keyword-only, frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def from_dict(cls, values: object, *, where: str) -> Self:
        """Check plain values.

        Args:
            values: What YAML gave, normally a dict.
            where: The file (or argument) named in the error.

        Raises:
            ConfigError: Names the file, the key, what was given and what was expected.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: given {type(values).__name__}, expected a mapping of keys to values")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: {first_mistake(error)}") from error

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read and check a YAML file; see `from_dict`."""
        return cls.from_dict(read_yaml(path), where=str(path))

    def to_yaml(self) -> str:
        """The resolved config as YAML, in declaration order, without keys left at None."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True, by_alias=True), sort_keys=False)


def read_yaml(path: str | Path) -> Any:
    """The plain values in a YAML file.

    Raises:
        ConfigError: If the file is missing or is not YAML; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise ConfigError(f"{path}:{line} not YAML: {getattr(error, 'problem', None) or error}") from error


def first_mistake(error: ValidationError) -> str:
    """One line for the first of pydantic's findings: key, given, expected, and how many more there are."""
    details = error.errors(include_url=False)
    first = details[0]
    key = ".".join(str(part) for part in first["loc"]) or "(top level)"
    if first["type"] == "extra_forbidden":
        text = f"{key}: unknown key"
    elif first["type"] == "missing":
        text = f"{key}: missing"
    else:
        expected = first["msg"].removeprefix("Value error, ")
        text = f"{key}: given {first['input']!r}, expected: {expected}"
    more = len(details) - 1
    return text + (f" (and {more} more)" if more else "")
