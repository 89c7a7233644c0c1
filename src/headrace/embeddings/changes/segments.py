"""Segments: files with the changes of a table group between two checkpoints, by key; see `docs/format-changes.md`."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import weakref
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import SECTIONS, Columns, Delta
from headrace.embeddings.changes.encoding import Empty, EncodedColumn, Floats, decode_column, encode_column
from headrace.errors import CheckpointError, TornCheckpoint
from headrace.files import new_file, writing

__all__ = ["ALIGNMENT", "Block", "Held", "Segment", "SegmentEntry", "SegmentWriter", "write_delta"]

MAGIC = b"HRROWS1\n"
TRAILER = struct.Struct("<QI4s")  # length of the footer, its CRC-32, and a mark
MARK = b"END\n"
ALIGNMENT = 64
"""Bytes, of columns in a file."""
KEYS = ("tables", "ids")
TAIL_BYTES = 1 << 15
"""Bytes of the end of a file that are read to find its footer, which has 200 bytes per column of a block."""
BLOCK_ROWS = 1 << 16
"""Rows per block, the unit of reading, checking and merging: 5 MiB at dim 16."""


Held = tuple[int, memoryview]
"""An offset in a file, and bytes from there on."""


@dataclass(frozen=True)
class SegmentEntry:
    """A segment in the manifest of a checkpoint.

    Attributes:
        name: Name of the file.
        first, last: It has the changes of the checkpoints with these numbers and those between; the first checkpoint
            of a run has all rows.
        is_base: Whether it has all rows, so that no earlier segment is needed.
        rows: Number of rows.
        bytes: Size of the file.
        sha256: SHA-256 of its footer, which has the checksums of all columns.
    """

    name: str
    first: int
    last: int
    is_base: bool
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Block:
    """Some rows of a section.

    Attributes:
        section: One of `SECTIONS`.
        num_rows: Number of rows.
        columns: For each column, how it is stored, its offset, its bytes in the file and their CRC-32.
    """

    section: str
    num_rows: int
    columns: dict[str, tuple[EncodedColumn, int, int, int]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of its columns in the file."""
        return sum(size for _, _, size, _ in self.columns.values())

    def extent(self, *, of_keys: bool) -> tuple[int, int]:
        """The offset and the length of the bytes of its keys, or of its other columns, which follow them."""
        places = [
            (offset, offset + size) for name, (_, offset, size, _) in self.columns.items() if (name in KEYS) == of_keys
        ]
        first = min((first for first, _ in places), default=0)
        return first, max((last for _, last in places), default=0) - first


class SegmentWriter:
    """Writes a segment block by block; it appears under its name when the context ends without an error.

    Args:
        path: The file.
        as_int8: Whether float32 weights are stored as int8, and optimizer state as bf16, see `encode_column`.

    Raises:
        CheckpointError: The file cannot be written.
    """

    def __init__(self, path: Path, *, as_int8: bool = False) -> None:
        self.path = path
        self._as_int8 = as_int8
        self._blocks: list[dict[str, Any]] = []
        self._num_rows = 0
        self._new_file = new_file(path, CheckpointError)
        self._file: Any = None

    def __enter__(self) -> Self:
        with writing(self.path, CheckpointError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._new_file.__enter__().open("wb")
        self._file.write(MAGIC)
        return self

    def add(self, section: str, columns: Columns) -> None:
        """Add rows, ascending by (table, id), after all others of the section; without rows, a block with no row."""
        num_rows = len(columns["ids"])
        for first in range(0, max(num_rows, 1), BLOCK_ROWS):
            part = {name: column[first : first + BLOCK_ROWS] for name, column in columns.items()}
            self._add_block(section, part)
        self._num_rows += num_rows if section == "rows" else 0

    def _add_block(self, section: str, columns: Columns) -> None:
        described = {}
        for name, column in columns.items():
            about, data = encode_column(column, is_sorted=name == "ids", as_floats=self._floats_of(name))
            self._file.write(bytes(-self._file.tell() % ALIGNMENT))
            at = {"offset": self._file.tell(), "bytes": len(data), "crc32": zlib.crc32(data)}
            self._file.write(data)
            described[name] = asdict(about) | at
        self._blocks.append({"section": section, "num_rows": len(columns["ids"]), "columns": described})

    def _floats_of(self, name: str) -> Floats:
        if self._as_int8 and name == "weights":
            return "int8"
        return "bf16" if self._as_int8 and name.startswith("slot.") else "exact"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if error is None:
            footer = json.dumps({"format": "headrace-rows", "version": 1, "blocks": self._blocks}).encode()
            self._digest = hashlib.sha256(footer).hexdigest()
            self._file.write(footer)
            self._file.write(TRAILER.pack(len(footer), zlib.crc32(footer), MARK))
            self._num_bytes = self._file.tell()
        self._file.close()
        return self._new_file.__exit__(kind, error, trace)

    def entry(self, first: int, last: int, *, is_base: bool) -> SegmentEntry:
        """The entry of the finished segment."""
        return SegmentEntry(self.path.name, first, last, is_base, self._num_rows, self._num_bytes, self._digest)


def write_delta(path: Path, delta: Delta, *, first: int, as_int8: bool = False) -> SegmentEntry:
    """Write a delta as a segment.

    Args:
        path: The file.
        delta: The delta.
        first: Number of its checkpoint.
        as_int8: See `SegmentWriter`.

    Raises:
        CheckpointError: The file cannot be written.
    """
    with SegmentWriter(path, as_int8=as_int8) as writer:
        for name in SECTIONS:
            columns = delta.section(name)
            writer.add(name, {key: column[:0] for key, column in columns.items()})  # it names the columns
            order = np.lexsort((columns["ids"], columns["tables"]))
            for start in range(0, len(order), BLOCK_ROWS):
                places = order[start : start + BLOCK_ROWS]
                writer.add(name, {key: np.take(column, places, axis=0) for key, column in columns.items()})
    return writer.entry(first, first, is_base=delta.since == 0)


class Segment:
    """An open segment.

    Args:
        folder: Folder of the file.
        entry: Its entry in the manifest.

    Raises:
        TornCheckpoint: The file is missing, has another size, or its footer does not match.
    """

    def __init__(self, folder: Path, entry: SegmentEntry) -> None:
        self.path, self.entry = folder / entry.name, entry
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
            size = os.fstat(self._descriptor).st_size
            if size != entry.bytes:
                raise TornCheckpoint(f"{self.path}: has {size} bytes, expected {entry.bytes}")
            self._data = memoryview(mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ))
        except FileNotFoundError as error:
            raise TornCheckpoint(f"{self.path}: is missing, expected {entry.bytes} bytes") from error
        except (OSError, ValueError) as error:
            raise TornCheckpoint(f"{self.path}: cannot be read: {error}") from error
        self.blocks = self._read_footer()

    def _read_footer(self) -> list[Block]:
        end = self.entry.bytes
        ending = self._tail(TAIL_BYTES)  # not mapped: a fault at the end would read what is around it, and wait for it
        length, _, mark = TRAILER.unpack(ending[-TRAILER.size :])
        if length + TRAILER.size > len(ending):
            ending = self._tail(min(end, length + TRAILER.size))
        footer = ending[max(0, len(ending) - TRAILER.size - length) : -TRAILER.size]
        digest = hashlib.sha256(footer).hexdigest()
        if mark != MARK or digest != self.entry.sha256:
            given = f"{digest[:12]}..., expected {self.entry.sha256[:12]}..."
            raise TornCheckpoint(f"{self.path}: footer: has SHA-256 {given}")
        values = json.loads(footer)
        return [
            Block(block["section"], block["num_rows"], {name: _column(at) for name, at in block["columns"].items()})
            for block in values["blocks"]
        ]

    def _tail(self, num_bytes: int) -> bytes:
        tail = bytearray(min(num_bytes, self.entry.bytes))
        self.read_into(self.entry.bytes - len(tail), memoryview(tail))
        return bytes(tail)

    def empty(self, section: str) -> Columns:
        """The columns of a section, without rows."""
        block = self.blocks_of(section)[0]
        shapes = {
            name: (0,) if about.width is None else (0, about.width) for name, (about, *_) in block.columns.items()
        }
        return {name: np.empty(shape, dtype=block.columns[name][0].dtype) for name, shape in shapes.items()}

    def blocks_of(self, section: str) -> list[Block]:
        """The blocks of a section, in the order of their keys."""
        return [block for block in self.blocks if block.section == section]

    def read(self, block: Block, name: str, held: Held | None = None, empty: Empty = np.empty) -> npt.NDArray[Any]:
        """A column of a block; it may be a view of the file, or of `held`.

        Args:
            block: The block.
            name: Name of the column.
            held: Bytes of the file in memory, among them the column; None to read the file.
            empty: Allocates an array for decoded integers.

        Raises:
            TornCheckpoint: Its checksum does not match.
        """
        about, offset, size, checksum = block.columns[name]
        first, source = (0, self._data) if held is None else held
        data = source[offset - first : offset - first + size]
        found = zlib.crc32(data)
        if found != checksum:
            place = f"block {self.blocks.index(block) + 1} of {len(self.blocks)}, {block.section}.{name}"
            raise TornCheckpoint(f"{self.path}: {place}: has CRC-32 {found:08x}, expected {checksum:08x}")
        return decode_column(about, data, block.num_rows, empty)

    def check(self) -> None:
        """Check all columns.

        Raises:
            TornCheckpoint: A checksum does not match.
        """
        for block in self.blocks:
            for name, (_, offset, size, checksum) in block.columns.items():
                if zlib.crc32(self._data[offset : offset + size]) != checksum:
                    self.read(block, name)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Read bytes of the file from an offset on, without the GIL.

        Raises:
            TornCheckpoint: They cannot be read.
        """
        try:
            while target:
                count = os.preadv(self._descriptor, [target], offset)
                if not count:
                    raise TornCheckpoint(f"{self.path}: ends at {offset}, expected {self.entry.bytes} bytes")
                offset, target = offset + count, target[count:]
        except OSError as error:
            raise TornCheckpoint(f"{self.path}: cannot be read: {error.strerror}") from error

    @property
    def encodings_of_weights(self) -> set[str]:
        """Encodings of the weights of all rows; empty if there are none."""
        blocks = [block for block in self.blocks_of("rows") if block.num_rows and "weights" in block.columns]
        return {block.columns["weights"][0].encoding for block in blocks}


def _column(values: Mapping[str, Any]) -> tuple[EncodedColumn, int, int, int]:
    at = [values[key] for key in ("offset", "bytes", "crc32")]
    about = {key: value for key, value in values.items() if key not in ("offset", "bytes", "crc32")}
    return EncodedColumn(**about), at[0], at[1], at[2]
