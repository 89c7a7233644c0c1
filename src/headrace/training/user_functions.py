"""`load_function`: a user's function named in a job file, imported by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.errors import ConfigError

__all__ = ["load_function"]


def load_function(name: str) -> Callable[..., Any]:
    """A user's function from "package.module:function".

    The working folder is searched too, after everything that is installed: a file there never replaces a library.

    Raises:
        ConfigError: There is no such module or function, or importing it fails; names the module and its file.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"pipeline: given {name!r}, expected package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    module = _import(module_name, where=f"pipeline: {name}")
    try:
        function = getattr(module, function_name)
    except AttributeError:
        file = getattr(module, "__file__", None) or "built in"
        raise ConfigError(f"pipeline: {name}: module {module_name} ({file}) has no {function_name}") from None
    if not callable(function):
        raise ConfigError(f"pipeline: {name} is {type(function).__name__}, expected a function")
    return function  # type: ignore[no-any-return]


def _import(module_name: str, *, where: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's module, which may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{where}: no module {error.name} in {Path.cwd()} or among installed packages") from error
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
