"""Paths as people write them: `~` is expanded, `file://` is local, and other URLs are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from headrace.errors import ConfigError, expect

__all__ = ["local_logs", "local_path", "logs_location"]

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<slash>/?)(?P<rest>.*)", re.DOTALL)
"""A scheme has two letters or more. One slash is enough: `pathlib` makes `s3:/bucket` of `s3://bucket`."""

_LOCAL_SCHEMES = ("file", "local")


def local_path(given: str | os.PathLike[str], *, where: str, base: Path | None = None) -> Path:
    """The local file or folder that someone means.

    Args:
        given: A path or a `file://` URL. `~` and `~user` at its start are expanded.
        where: The key or argument that holds it, for the error.
        base: Folder that relative paths start at; None leaves them relative.

    Raises:
        ConfigError: It is empty, a URL of another kind, or names a home folder that does not exist.
    """
    expect(given, (str, os.PathLike), where=where, expected="a path")
    text = os.fspath(given)
    if not text or "\0" in text:
        raise ConfigError(f"{where}: given {text!r}, expected a path")
    url = _URL.fullmatch(text)
    if url is not None:
        return _path_of_url(url, where)
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{where}: given {text}: there is no home folder for {text.split('/')[0]}") from error
    return path if base is None else base / path


def logs_location(given: str, *, where: str, base: Path) -> str:
    """Where logs are: a URL of any file system but the local one as it is, anything else as an absolute path."""
    return _remote_url(given) or str(local_path(given, where=where, base=base).resolve())


def local_logs(location: str | os.PathLike[str]) -> Path | None:
    """Path of logs on this machine, which may be a glob; None if they are on another file system.

    Raises:
        ConfigError: As `local_path` does.
    """
    expect(location, (str, os.PathLike), where="logs", expected="a path, a glob or a URL")
    return None if _remote_url(os.fspath(location)) else local_path(location, where="logs")


def _remote_url(text: str) -> str | None:
    """The URL, of any file system but the local one, that a text is; None if it is a local path."""
    url = _URL.fullmatch(text)
    if url is None:
        return text if "://" in text else None  # fsspec's chains, such as simplecache::s3://bucket
    return None if url["scheme"].lower() in _LOCAL_SCHEMES else f"{url['scheme']}://{url['rest']}"


def _path_of_url(url: re.Match[str], where: str) -> Path:
    scheme = url["scheme"].lower()
    full = f"{url['scheme']}://{url['rest']}"
    if scheme not in _LOCAL_SCHEMES:
        raise ConfigError(f"{where}: given {full}, expected a local path; only logs are read from {scheme}://")
    parts = urlsplit(full if url["slash"] else f"file:///{url['rest']}")
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{where}: given {full}, expected file:///absolute/path")
    return Path(url2pathname(parts.path))
