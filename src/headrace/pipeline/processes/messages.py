"""Messages between a pipeline and its worker processes: small pickled control values, and rows in shared memory.

Rows travel as an Arrow IPC stream in a `memfd` (an unnamed temporary file where there is none) whose descriptor is
passed along. They are copied only once and do not depend on the size of `/dev/shm`. The receiver's batch points into
that memory, which is freed with the batch. The connection is a private socket pair.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.logs.groups import compact

__all__ = ["Disconnected", "exactly", "receive", "send"]

_HEADER = struct.Struct("<QQ")
"""Bytes of the control values; bytes of the rows, 0 for none."""


class Disconnected(Exception):
    """The other end closed the connection."""


def send(connection: socket.socket, control: Any, rows: pa.RecordBatch | None = None) -> None:
    """Send a message.

    Args:
        connection: One end of a Unix socket pair.
        control: Plain values, sent pickled.
        rows: A record batch, or None.

    Raises:
        Disconnected: The other end closed the connection.
    """
    body = pickle.dumps(control, protocol=pickle.HIGHEST_PROTOCOL)
    try:
        if rows is None:
            connection.sendall(_HEADER.pack(len(body), 0) + body)
            return
        file = _write_rows(rows)
        try:
            header = _HEADER.pack(len(body), os.fstat(file).st_size)
            socket.send_fds(connection, [header], [file])
        finally:
            os.close(file)
        connection.sendall(body)
    except (BrokenPipeError, ConnectionError) as error:
        raise Disconnected from error


def receive(connection: socket.socket) -> tuple[Any, pa.RecordBatch | None]:
    """Wait for a message and return its control values and rows.

    Raises:
        Disconnected: The other end closed the connection.
        TimeoutError: The connection's timeout expired.
    """
    try:
        header, files, _, _ = socket.recv_fds(connection, _HEADER.size, 1)
        try:
            header += exactly(connection, _HEADER.size - len(header))
            control_bytes, rows_bytes = _HEADER.unpack(header)
            control = pickle.loads(exactly(connection, control_bytes))
            return control, _read_rows(files[0], rows_bytes) if files else None
        finally:
            for file in files:
                os.close(file)
    except (ConnectionError, EOFError) as error:
        raise Disconnected from error


def exactly(connection: socket.socket, num_bytes: int) -> bytes:
    """Read exactly `num_bytes` bytes.

    Raises:
        EOFError: The other end closed the connection first.
    """
    body = bytearray()
    while len(body) < num_bytes:
        part = connection.recv(min(num_bytes - len(body), 1 << 20))
        if not part:
            raise EOFError
        body += part
    return bytes(body)


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("headrace", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # not Linux
        return os.dup(file.fileno())


def _write_rows(rows: pa.RecordBatch) -> int:
    rows = compact(rows)  # a slice would otherwise carry the unique rows of the whole batch
    descriptor = _memory_file()
    try:
        with (
            os.fdopen(descriptor, "wb", closefd=False) as file,
            pa.PythonFile(file, mode="w") as sink,
            pa.ipc.new_stream(sink, rows.schema) as writer,
        ):
            writer.write_batch(rows)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read_rows(file: int, num_bytes: int) -> pa.RecordBatch:
    if Path("/proc/self/fd").is_dir():
        # The mapping outlives the descriptor. Python's `mmap` would keep one open for as long as the batch lives.
        with pa.memory_map(f"/proc/self/fd/{file}") as mapped:
            memory = mapped.read_buffer()
    else:
        memory = pa.py_buffer(mmap.mmap(file, num_bytes, access=mmap.ACCESS_READ))
    with pa.ipc.open_stream(memory) as reader:
        return reader.read_next_batch()
