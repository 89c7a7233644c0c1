"""`load_object`: imports user code that a job file refers to as "package.module:name"."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.errors import ConfigError

__all__ = ["load_function", "load_object", "no_imports"]

_may_import: ContextVar[bool] = ContextVar("may_import", default=True)


@contextmanager
def no_imports() -> Iterator[None]:
    """Within this context, names only resolve to already imported modules, because an untrusted file, such as an
    export, must not choose which code runs."""
    token = _may_import.set(False)
    try:
        yield
    finally:
        _may_import.reset(token)


def load_object(name: str, *, where: str) -> Any:
    """Import the object "package.module:name".

    The working folder is searched last, so that a file there never replaces an installed library.

    Args:
        name: Module and attribute.
        where: Key in the job file, for error messages.

    Raises:
        ConfigError: The module or attribute does not exist, or importing it fails; the message names the module and its
            file.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{where}: given {name!r}, expected package.module:name")
    module = _import(module_name, where=f"{where}: {name}")
    try:
        return getattr(module, attribute)
    except AttributeError:
        file = getattr(module, "__file__", None) or "built in"
        raise ConfigError(f"{where}: {name}: module {module_name} ({file}) has no {attribute}") from None


def load_function(name: str, *, where: str = "pipeline") -> Callable[..., Any]:
    """Import a user function "package.module:function"; see `load_object`.

    Raises:
        ConfigError: As for `load_object`, or the object is not a function.
    """
    function = load_object(name, where=where)
    if not callable(function):
        raise ConfigError(f"{where}: {name} is {type(function).__name__}, expected a function")
    return function  # type: ignore[no-any-return]


def _import(module_name: str, *, where: str) -> ModuleType:
    if not _may_import.get():
        if module_name not in sys.modules:
            raise ConfigError(
                f"{where}: not imported, because loading an untrusted file must not run code. "
                f"If you trust it, import {module_name} before loading"
            )
        return sys.modules[module_name]
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's module, which may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{where}: no module {error.name} in {here} or among installed packages") from error
        reason = f"{type(error).__name__}: {error}{_place(error)}"
        raise ConfigError(
            f"{where}: importing module {module_name} ({_file_of(module_name)}) failed: {reason}"
        ) from error


def _file_of(module_name: str) -> str:
    try:
        spec = importlib.util.find_spec(module_name)
    except Exception:  # importing its parent package failed
        spec = importlib.util.find_spec(module_name.partition(".")[0])
    return (None if spec is None else spec.origin) or "no file"


def _place(error: Exception) -> str:
    """The location where an error was raised; a SyntaxError's text already contains it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "" if frame.filename.startswith("<") else f" ({frame.filename} line {frame.lineno})"
