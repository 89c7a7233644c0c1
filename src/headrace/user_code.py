"""`load_object`: what a job file names as "package.module:name", imported from the user's own code."""

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
    """Within this, names find only modules that the program has imported already: a file somebody else wrote, such as
    an export, must not choose which code runs."""
    token = _may_import.set(False)
    try:
        yield
    finally:
        _may_import.reset(token)


def load_object(name: str, *, where: str) -> Any:
    """What "package.module:name" names.

    The working folder is searched too, after everything that is installed: a file there never replaces a library.

    Args:
        name: Module and attribute.
        where: The key in the job file, for errors.

    Raises:
        ConfigError: There is no such module or attribute, or importing it fails; names the module and its file.
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
    """A user's function from "package.module:function"; see `load_object`.

    Raises:
        ConfigError: As `load_object`, or it is not a function.
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
    except Exception:  # importing the package around it failed
        spec = importlib.util.find_spec(module_name.partition(".")[0])
    return (None if spec is None else spec.origin) or "no file"


def _place(error: Exception) -> str:
    """Where it was raised; a SyntaxError's text says so itself."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "" if frame.filename.startswith("<") else f" ({frame.filename} line {frame.lineno})"
