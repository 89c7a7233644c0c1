"""Rows arrive as they were sent, without open files left behind, and a lost connection is told."""

import socket
import threading
from collections.abc import Iterator

import psutil
import pyarrow as pa
import pytest

from headrace.pipeline.processes.messages import Disconnected, receive, send

ROWS = pa.record_batch(
    {
        "numbers": pa.array([1, None, 3], pa.int32()),
        "lists": [[1, 2], [], None],
        "words": pa.array(["a", "b", "a"]).dictionary_encode(),
    }
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    "rows", [None, ROWS, ROWS.slice(1, 2), ROWS.slice(0, 0)], ids=["none", "all", "slice", "empty"]
)
def test_a_message_arrives_as_it_was_sent(pair: tuple[socket.socket, socket.socket], rows: object) -> None:
    send(pair[0], {"seed": (1, 2)}, rows)
    control, received = receive(pair[1])
    assert control == {"seed": (1, 2)}
    assert received == rows


def test_rows_stay_readable_when_all_descriptors_are_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    before = psutil.Process().num_fds()
    batches = []
    for _ in range(20):
        send(pair[0], None, ROWS)
        batches.append(receive(pair[1])[1])
    assert psutil.Process().num_fds() == before
    assert all(batch == ROWS for batch in batches)


def test_a_message_longer_than_the_sockets_buffer_arrives_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    text = "x" * 3_000_000
    sender = threading.Thread(target=send, args=(pair[0], text, ROWS))
    sender.start()
    assert receive(pair[1]) == (text, ROWS)
    sender.join()


def test_the_end_of_the_other_side_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with pytest.raises(Disconnected):
        receive(pair[0])
    with pytest.raises(Disconnected):
        send(pair[0], None, ROWS)


def test_a_message_cut_off_in_the_middle_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].sendall(b"\x10" + b"\x00" * 15 + b"half")
    pair[1].close()
    with pytest.raises(Disconnected):
        receive(pair[0])
