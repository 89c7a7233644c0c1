"""Writes the reference of the job file into docs/job-file.md; `--check` only says whether it is up to date."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from headrace.config import Config
from headrace.registry import OneOf
from headrace.training import JobConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "job-file.md"
BEGIN = "<!-- reference: written by scripts/job_reference.py -->"
END = "<!-- end of reference -->"
HEADER = ["| key | value | default | meaning |", "|---|---|---|---|"]
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def reference() -> str:
    """A section with a table for each part of the job file, in the order in which they are named."""
    sections: dict[str, list[type[Config]]] = {}
    waiting: list[tuple[str, list[type[Config]]]] = [("", [JobConfig])]
    while waiting:
        path, configs = waiting.pop(0)
        if configs not in sections.values():
            sections[path] = configs
            waiting = [*_inner(path, configs), *waiting]
    places = {config: path for path, configs in sections.items() for config in configs}
    parts: list[str] = []
    for path, configs in sections.items():
        parts.append(f"## `{path}`" if path else "## Top level")
        parts += [_section(config, named=len(configs) > 1, places=places) for config in configs]
    return "\n\n".join(parts)


def _inner(path: str, configs: list[type[Config]]) -> Iterator[tuple[str, list[type[Config]]]]:
    for config in configs:
        for name, field in config.model_fields.items():
            inner, suffix = _configs_in(field.annotation)
            if inner:
                yield f"{path}.{field.alias or name}".lstrip(".") + suffix, inner


def _section(config: type[Config], *, named: bool, places: dict[type[Config], str]) -> str:
    meanings = _meanings(config)
    lines = [f"{(inspect.getdoc(config) or '').splitlines()[0]}", ""]
    if named:
        lines = [f"### `{_kind(config)}`", "", *lines]
    lines += HEADER
    for name, field in config.model_fields.items():
        key = field.alias or name
        if named and name == "kind":
            meaning = "Selects this kind."
        else:
            meaning = meanings.get(name, "")
            for place in {places[inner]: None for inner in _configs_in(field.annotation)[0]}:
                meaning = f"{meaning} See [`{place}`](#{_anchor(place)}).".lstrip()
        lines.append(f"| `{key}` | {_values(field)} | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def _kind(config: type[Config]) -> str:
    return f"kind: {get_args(config.model_fields['kind'].annotation)[0]}"


def _anchor(place: str) -> str:
    """As GitHub makes it from the heading."""
    return re.sub(r"[^\w-]", "", place.lower())


def _configs_in(annotation: Any) -> tuple[list[type[Config]], str]:
    """The configs a value may be, or that its list or mapping holds, and how their path goes on."""
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        return annotation.variants() or [annotation], ""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _configs_in(arguments[0])
    if origin is tuple:
        return _configs_in(arguments[0])[0], "[]"
    if origin is dict:
        return _configs_in(arguments[1])[0], ".NAME"
    if origin in (Union, types.UnionType):
        found = [_configs_in(argument)[0] for argument in arguments]
        return [config for part in found for config in part], ""
    return [], ""


def _meanings(config: type[Config]) -> dict[str, str]:
    """What is written below each field, or under "Attributes:" of the class; its bases' fields included."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if issubclass(base, Config) and base is not Config:
            found |= _own_meanings(base)
    return {
        name: re.sub(r"\bNone\b", "null", " ".join(text.split())).replace("|", "\\|") for name, text in found.items()
    }


def _own_meanings(config: type[Config]) -> dict[str, str]:
    (tree,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(tree, ast.ClassDef)
    found = dict(re.findall(r"^    (\w+): (.+(?:\n     +.+)*)", inspect.getdoc(config) or "", re.MULTILINE))
    for statement, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            found[statement.target.id] = str(ast.literal_eval(after.value))
    return found


def _values(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(mark, name):g}"
        for mark in field.metadata
        for name, sign in SIGNS.items()
        if hasattr(mark, name)
    ]
    if any(getattr(mark, "min_length", 0) for mark in field.metadata):
        bounds.append("not empty")
    return ", ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    plain = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "any"}
    if annotation in plain:
        return plain[annotation]
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        return "mapping"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated and isinstance(arguments[1], OneOf):
        return ", ".join(f"`{name}`" for name in arguments[1].names()) + ", `package.module:name`"
    if origin is Annotated:
        short = "text or " if any(hasattr(mark, "func") for mark in arguments[1:]) else ""
        return short + _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        several = len(arguments) == 2 and arguments[1] is not Ellipsis
        return f"{len(arguments)} times {_type(arguments[0])}" if several else f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping of names"
    assert origin in (Union, types.UnionType), annotation
    return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))


def _default(field: FieldInfo) -> str:
    default = field.default_factory() if field.default_factory is not None else field.default  # type: ignore[call-arg]
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Config):
        kind = getattr(default, "kind", None)
        return f"`{{kind: {kind}}}`" if kind and _has_variants(field) else "as below"
    if isinstance(default, tuple):
        default = list(default)
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{yaml.safe_dump(default, default_flow_style=True).removesuffix('...' + chr(10)).strip()}`"


def _has_variants(field: FieldInfo) -> bool:
    return len(_configs_in(field.annotation)[0]) > 1


def with_reference(text: str) -> str:
    """The page with the reference as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    wanted = with_reference(text)
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print(f"{PAGE} is out of date; run: python scripts/job_reference.py")
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
