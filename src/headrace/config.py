"""`Config`: base class of configs, validated with one clear line per error."""

import inspect
import os
import re
import types
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from headrace.bounded_yaml import AmbiguousYAML, BoundedLoader
from headrace.errors import ConfigError, expect
from headrace.messages import MAX_CHARACTERS, shorten, shorten_list

__all__ = ["Config", "first_mistake", "parse_yaml", "read_yaml"]


class Config(BaseModel):
    """Base class of all configs: keyword-only, frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    if not TYPE_CHECKING:  # type checkers see the fields

        def __init__(self, /, *given: object, **values: Any) -> None:
            name = type(self).__name__
            if given:
                raise ConfigError(f"{name}: given {type(given[0]).__name__}, expected keyword arguments")
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise ConfigError(f"{name}: {first_mistake(error, type(self))}") from error

        # Otherwise Pydantic would call it for nested configs too, and the path to the error would be lost.
        __init__.__pydantic_base_init__ = True

    @classmethod
    def from_dict(cls, values: object, *, where: str) -> Self:
        """Create a config from plain values.

        Args:
            values: Values from YAML, normally a dict.
            where: File or argument name in error messages.

        Raises:
            ConfigError: A value is invalid; names the file, the key, the given and the expected value.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: given {type(values).__name__}, expected a mapping of keys to values")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: {first_mistake(error, cls)}") from error

    @classmethod
    def variant(cls, kind: object) -> "type[Config] | None":
        """The config class of a kind, if this is a base class of several kinds; else None."""
        return None

    @classmethod
    def variants(cls) -> "list[type[Config]]":
        """The config classes of all named kinds, if this is a base class of several kinds."""
        return []

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file; see `from_dict`."""
        return cls.from_dict(read_yaml(path), where=str(path))

    def changed(self) -> dict[str, Any]:
        """The fields whose value is not their default, by name. A field given its default value is not among them,
        as a saved config gives all."""
        fields = type(self).model_fields.items()
        defaults = {name: field.get_default(call_default_factory=True) for name, field in fields}
        return {name: getattr(self, name) for name in defaults if getattr(self, name) != defaults[name]}

    @model_serializer(mode="wrap")
    def _write_meaningful_nulls(self, write: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Keep None with `exclude_none`, where the key left out would mean something else, its default."""
        values: dict[str, Any] = write(self)
        for name, value in self.changed().items() if info.exclude_none else ():
            if value is None:
                field = type(self).model_fields[name]
                values.setdefault(field.alias if info.by_alias and field.alias else name, None)
        return values

    def to_yaml(self) -> str:
        """The resolved config as YAML, in declaration order, without keys whose default is None and that are left at
        it."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True, by_alias=True), sort_keys=False)


def read_yaml(path: str | Path) -> Any:
    """Read the plain values of a YAML file.

    Raises:
        ConfigError: The file is missing, is not YAML, or has duplicate keys; names the line.
    """
    expect(path, (str, os.PathLike), where="YAML file", expected="a path")
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    return parse_yaml(path.read_bytes(), where=str(path))


def parse_yaml(text: str | bytes, *, where: str) -> Any:
    """The plain values of YAML text, in UTF-8.

    Args:
        text: The text.
        where: What it is, for error messages.

    Raises:
        ConfigError: It is not YAML, or has duplicate keys; names the line.
    """
    try:
        return yaml.load(text if isinstance(text, str) else text.decode("utf-8"), BoundedLoader)
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, a date in month 13, a number of 5,000 digits
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        what = "" if isinstance(error, AmbiguousYAML) else " not YAML:"
        raise ConfigError(f"{where}:{line}{what} {getattr(error, 'problem', None) or error}") from error


def whole_number_or(word: str, *, at_least: int) -> BeforeValidator:
    """Checks a setting that is a whole number or one word: `Annotated[int | Literal["auto"], whole_number_or(...)]`.

    A bound in `Field` would be compared with the word as well.
    """

    def check(value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= at_least
        if is_number or value == word:
            return value
        raise ValueError(f"a whole number of at least {at_least}, or {word}")

    return BeforeValidator(check)


def first_mistake(error: ValidationError, config: type[Config]) -> str:
    """Format a pydantic validation error as one line.

    Lists all unknown keys, each with the most similar key, because a misspelt key is often reported as missing too.
    Otherwise formats the first error: key, given and expected value, and the number of further errors.
    """
    details = error.errors(include_url=False)
    unknown = [each["loc"] for each in details if each["type"] == "extra_forbidden"]
    if unknown:
        return "; ".join(_unknown_key(config, loc) for loc in unknown)
    first = details[0]
    loc = first["loc"]
    path, _ = _place_of(config, loc)
    key = f"{path}{loc[-1]}" if loc else "(top level)"
    if first["type"] == "missing":
        text = f"{key}: missing"
    elif first["type"] == "import":
        text = f"{key}: {first['msg']}"
    else:
        text = _refused_value(key, first["input"], first["msg"])
    more = len(details) - 1
    return text + (f" (and {more} more)" if more else "")


def _refused_value(key: str, given: Any, message: str) -> str:
    """One line on a value that a field or a section refuses.

    A section is not printed: its message has the settings that do not fit. If these begin it, as in "memory: given
    3GiB, expected ...", they become part of the key.
    """
    expected = shorten(message.removeprefix("Value error, ").removeprefix("Input should be "), MAX_CHARACTERS)
    if expected.startswith(f"{key}: "):
        return expected
    if not isinstance(given, dict):
        return f"{key}: given {shorten(repr(given))}, expected: {expected}"
    return f"{key}{'.' if re.match(r'[a-z_.]+: given ', expected) else ': '}{expected}"


def _place_of(config: type[Config], loc: Sequence[int | str]) -> tuple[str, list[str]]:
    return next(_places(config, loc[:-1]), ("".join(f"{part}." for part in loc[:-1]), []))


def _unknown_key(config: type[Config], loc: Sequence[int | str]) -> str:
    path, known = _place_of(config, loc)
    near = get_close_matches(str(loc[-1]), known, n=1)
    expected = f"expected one of: {shorten_list(known)}" if known else "no key is expected here"
    return f"{path}{loc[-1]}: unknown key, {expected}" + (f" (did you mean {near[0]}?)" if near else "")


def _places(annotation: Any, loc: Sequence[int | str], path: str = "") -> Iterator[tuple[str, list[str]]]:
    """The path of a location in nested configs, as written by users, and the keys allowed there.

    Pydantic's `loc` also contains the class or kind of a config that is one of several.
    """
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        chosen = annotation.variant(loc[0]) if loc else None
        if chosen is not None:
            yield from _places(chosen, loc[1:], path)
            return
        fields = {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}
        kind = annotation.model_fields.get("kind")
        if not loc:
            yield path, list(fields)
        elif loc[0] in fields:
            yield from _places(fields[str(loc[0])], loc[1:], f"{path}{loc[0]}.")
        elif annotation.__name__ in str(loc[0]) or (kind is not None and loc[0] in get_args(kind.annotation)):
            yield from _places(annotation, loc[1:], path)
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _places(arguments[0], loc, path)
    elif origin in (Union, types.UnionType):
        for argument in arguments:
            yield from _places(argument, loc, path)
    elif not loc:
        yield path, []
    elif origin in (tuple, dict):
        yield from _places(arguments[0 if origin is tuple else 1], loc[1:], f"{path}{loc[0]}.")
