"""The main function of a worker process: receives elements, applies the user's functions, sends results."""

from __future__ import annotations

import faulthandler
import pickle
import signal
import socket
import time
import traceback
from dataclasses import replace

import pyarrow as pa

from headrace.lifeline import end_with_file
from headrace.pipeline.processes.messages import Disconnected, receive, send
from headrace.pipeline.transformations.chain import StageFault, run_chain
from headrace.resources import free_unused_memory, peak_bytes, queued_s, resident_bytes

__all__ = ["STACK_SIGNAL", "main"]

STACK_SIGNAL = signal.SIGUSR1
"""Signal that makes a worker write its stack."""


def main(connection_file: int, lifeline_file: int, stack_file: int) -> None:
    """Serve until the other end closes the connection.

    Args:
        connection_file: File descriptor of the socket.
        lifeline_file: File descriptor of a `Lifeline` of the pipeline's process: this process ends with it, even in the
            middle of a user function.
        stack_file: File descriptor that receives the stack on `STACK_SIGNAL`.
    """
    faulthandler.register(STACK_SIGNAL, file=stack_file, all_threads=False)
    end_with_file(lifeline_file)
    pa.set_cpu_count(1)  # many workers run in parallel: one thread each
    with socket.socket(fileno=connection_file) as connection:
        try:
            _serve(connection)
        except Disconnected:
            return


def _serve(connection: socket.socket) -> None:
    memory = _OwnMemory()
    shipped, _ = receive(connection)
    try:
        operations = pickle.loads(shipped)
    except Exception as error:  # importing runs the user's module, which may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename} line {frame.lineno}"
        reason = f"the worker process cannot load the function: {type(error).__name__}: {error} ({place})"
        send(connection, StageFault(0, reason, (), traceback.format_exc()))
        return
    send(connection, None)
    while True:
        (num_rows, num_bytes, seed, is_short), rows = receive(connection)
        before_bytes = memory.now()
        try:
            result = run_chain(operations, rows, num_rows, num_bytes, seed, time.process_time, queued_s)
        except StageFault as fault:
            send(connection, StageFault(*fault.args))
            continue
        use = (before_bytes, memory.peak())  # the message itself is charged to the pipeline's process
        send(connection, (replace(result, payload=None), use), result.payload)
        del rows, result
        if is_short:
            free_unused_memory()


class _OwnMemory:
    """Memory of this process beyond the pages it shares with the template."""

    def __init__(self) -> None:
        self._first = resident_bytes()

    def now(self) -> int:
        return max(0, resident_bytes() - self._first)

    def peak(self) -> int:
        return max(0, peak_bytes() - self._first)
