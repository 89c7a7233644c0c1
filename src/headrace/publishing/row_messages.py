"""Messages with which rows of a replica are read over the network: raw columns behind a small JSON header.

read      {"table_group", "version", "keys"} tables int32 [U] ids int64 [U]    ->  rows float32 [U, D]
changed   {"table_group", "version", "since"}                ->  {"keys", "whole"} tables, ids; or {"keys": null}
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.errors import PublishingError
from headrace.publishing.changed_ids import ChangedIds

__all__ = [
    "pack_changed",
    "pack_changed_request",
    "pack_keys",
    "unpack_changed",
    "unpack_changed_request",
    "unpack_keys",
    "unpack_rows",
]

MOST_KEYS = 1 << 22
MOST_HEADER = 1 << 20
_LENGTH = struct.Struct("<I")

Float32s = npt.NDArray[np.float32]


def pack_keys(table_group: str, version: int, keys: Keys) -> bytes:
    """A request for rows."""
    header = {"table_group": table_group, "version": version, "keys": len(keys)}
    tables, ids = np.ascontiguousarray(keys.tables, "<i4"), np.ascontiguousarray(keys.ids, "<i8")
    return _packed(header, tables.tobytes(), ids.tobytes())


def unpack_keys(message: bytes) -> tuple[str, int, Keys]:
    """Table group, version and keys of a request for rows.

    Raises:
        PublishingError: It is none.
    """
    header, body = _unpacked(message, "read")
    count = _number(header, "keys", MOST_KEYS)
    if len(body) != 12 * count:
        raise PublishingError(f"read: given {len(body)} bytes of keys, expected {12 * count}")
    tables = np.frombuffer(body, "<i4", count)
    ids = np.frombuffer(body, "<i8", count, 4 * count)
    return _text(header, "table_group"), _number(header, "version"), Keys(tables, ids, np.zeros(count, np.int32))


def unpack_rows(message: bytes, num_keys: int) -> Float32s:
    """Rows, float32 [U, D].

    Raises:
        PublishingError: They do not belong to so many keys.
    """
    if num_keys == 0 or len(message) % (4 * num_keys):
        raise PublishingError(f"rows: given {len(message)} bytes for {num_keys} keys")
    return np.frombuffer(message, "<f4").reshape(num_keys, -1)


def pack_changed_request(table_group: str, since: int, version: int) -> bytes:
    """A request for the ids that changed between two versions."""
    return _packed({"table_group": table_group, "since": since, "version": version})


def unpack_changed_request(message: bytes) -> tuple[str, int, int]:
    """Table group and versions of a request for changed ids.

    Raises:
        PublishingError: It is none.
    """
    header, _ = _unpacked(message, "changed")
    return _text(header, "table_group"), _number(header, "since"), _number(header, "version")


def pack_changed(changed: ChangedIds | None) -> bytes:
    """The answer to a request for changed ids; None if any id may have changed."""
    if changed is None:
        return _packed({"keys": None})
    tables, ids = np.ascontiguousarray(changed.tables, "<i4"), np.ascontiguousarray(changed.ids, "<i8")
    return _packed({"keys": len(ids), "whole": changed.whole.tolist()}, tables.tobytes(), ids.tobytes())


def unpack_changed(message: bytes) -> ChangedIds | None:
    """The ids that changed; None if any may have.

    Raises:
        PublishingError: It is no answer to such a request.
    """
    header, body = _unpacked(message, "changed")
    if header.get("keys") is None:
        return None
    count = _number(header, "keys", 1 << 31)
    if len(body) != 12 * count:
        raise PublishingError(f"changed: given {len(body)} bytes of keys, expected {12 * count}")
    whole = np.array(header.get("whole", []), np.int32)
    return ChangedIds(np.frombuffer(body, "<i4", count), np.frombuffer(body, "<i8", count, 4 * count), whole)


def _packed(header: dict[str, Any], *parts: bytes) -> bytes:
    text = json.dumps(header).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *parts])


def _unpacked(message: bytes, what: str) -> tuple[dict[str, Any], memoryview]:
    view = memoryview(message)
    length = _LENGTH.unpack_from(view)[0] if len(view) >= _LENGTH.size else MOST_HEADER
    end = _LENGTH.size + length
    try:
        header = json.loads(bytes(view[_LENGTH.size : end])) if end <= min(len(view), MOST_HEADER) else None
    except (ValueError, RecursionError) as error:
        raise PublishingError(f"{what}: the header is not JSON") from error
    if not isinstance(header, dict):
        raise PublishingError(f"{what}: expected a JSON object as header")
    return header, view[end:]


def _number(header: dict[str, Any], name: str, most: int = 1 << 62) -> int:
    value = header.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise PublishingError(f"{name}: given {str(value)[:40]!r}, expected a whole number up to {most}")
    return value


def _text(header: dict[str, Any], name: str) -> str:
    value = header.get(name)
    if not isinstance(value, str):
        raise PublishingError(f"{name}: given {str(value)[:40]!r}, expected text")
    return value
