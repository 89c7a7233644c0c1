"""A worker tells what it used, also the time in which it was ready without a CPU."""

import pickle
import socket
import threading
from contextlib import suppress
from itertools import count

import pyarrow as pa
import pytest

from headrace.logs.source import ROW_ID
from headrace.pipeline.processes import worker_main
from headrace.pipeline.processes.messages import Disconnected, receive, send
from headrace.pipeline.transformations.map import Map
from headrace.testing.functions import same


def test_time_without_a_cpu_is_told_for_each_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = count()
    monkeypatch.setattr(worker_main, "queued_s", lambda: float(next(ready)))  # a second passes between two looks
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with suppress(Disconnected):
            worker_main._serve(theirs)

    worker = threading.Thread(target=serve)
    worker.start()
    with theirs, ours:
        send(ours, pickle.dumps([Map(same), Map(same)]))
        assert receive(ours)[0] is None
        send(ours, (3, 100, (0, 0, 0), False), pa.record_batch({"value": [1, 2, 3], ROW_ID: [0, 1, 2]}))
        (result, _), rows = receive(ours)
        ours.shutdown(socket.SHUT_RDWR)
        worker.join()
    assert rows is not None
    assert rows.num_rows == 3
    assert [use.queued_s for use in result.uses] == [1.0, 1.0]
