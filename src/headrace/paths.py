"""Parses paths given by users: `~` is expanded, `file://` is local, and other URLs are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from headrace.errors import ConfigError, expect

__all__ = ["local_logs", "local_path", "logs_location"]

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<slash>/?)(?P<rest>.*)", re.DOTALL)
"""A scheme has at least two letters. One slash is enough, because `pathlib` turns `s3://bucket` into `s3:/bucket`."""

_LOCAL_SCHEMES = ("file", "local")


def local_path(given: str | os.PathLike[str], *, where: str, base: Path | None = None) -> Path:
    """Parse a local path.

    Args:
        given: A path or a `file://` URL. A leading `~` or `~user` is expanded.
        where: Key or argument name in error messages.
        base: Folder for relative paths; None leaves them relative.

    Raises:
        ConfigError: The path is empty, another kind of URL, or has an unknown home folder.
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
    """Parse the location of logs: remote URLs are unchanged, anything else becomes an absolute path."""
    return _remote_url(given) or str(local_path(given, where=where, base=base).resolve())


def local_logs(location: str | os.PathLike[str]) -> Path | None:
    """Path of local logs, which may be a glob; None if they are on a remote file system.

    Raises:
        ConfigError: As for `local_path`.
    """
    expect(location, (str, os.PathLike), where="logs", expected="a path, a glob or a URL")
    return None if _remote_url(os.fspath(location)) else local_path(location, where="logs")


def _remote_url(text: str) -> str | None:
    """The text if it is a URL of a remote file system, else None."""
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
