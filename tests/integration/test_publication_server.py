"""A folder of publications over Flight: what is new, files from an offset, and requests that are refused."""

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from safetensors.numpy import save_file

from headrace.embeddings.shards.security import ClientSecurity, ServerSecurity
from headrace.errors import ConfigError, PublishingError
from headrace.publishing import server as serving
from headrace.publishing.client import PublicationClient
from headrace.publishing.publications import DENSE, Publication, PublicationFolder
from headrace.publishing.server import PublicationServer


def publish(folder: PublicationFolder, version: int) -> None:
    def write(place: Path) -> Publication:
        save_file({"w": np.full(1000, version, np.float32)}, place / DENSE)
        return Publication(version, "a", version, 0.0, 0, {}, {})

    folder.add(version, write)


@pytest.fixture
def folder(tmp_path: Path) -> PublicationFolder:
    return PublicationFolder(tmp_path / "publications", keep=3)


@pytest.fixture
def client(folder: PublicationFolder) -> Iterator[PublicationClient]:
    with PublicationServer(folder, "127.0.0.1:0", actions={"echo": lambda body: body}) as server:
        client = PublicationClient(f"127.0.0.1:{server.port}")
        yield client
        client.close()


def test_versions_appear_and_go(folder: PublicationFolder, client: PublicationClient) -> None:
    assert client.status().versions == ()
    for version in range(1, 6):
        publish(folder, version)
        assert client.status().newest == version
    assert client.status().versions == (3, 4, 5)
    assert client.manifest(5) == (folder.place(5) / "manifest.json").read_bytes()
    with pytest.raises(PublishingError, match="version 2: is not here, expected one of: 3 to 5"):
        client.manifest(2)


def test_waiting_ends_with_the_next_version_or_the_time(folder: PublicationFolder, client: PublicationClient) -> None:
    publish(folder, 1)
    assert client.wait(0).newest == 1
    assert client.wait(1, timeout_s=0.05).newest == 1
    found: list[int] = []
    waiting = threading.Thread(target=lambda: found.append(client.wait(1, timeout_s=60).newest))
    waiting.start()
    publish(folder, 2)
    waiting.join()
    assert found == [2]


def test_a_server_that_stops_ends_the_requests_that_wait(folder: PublicationFolder) -> None:
    server = PublicationServer(folder, "127.0.0.1:0")
    client = PublicationClient(f"127.0.0.1:{server.port}")
    ended = threading.Event()

    def wait() -> None:
        with suppress(PublishingError):
            client.wait(1, timeout_s=60)
        ended.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    server.shutdown()
    waiting.join()
    assert ended.is_set()
    client.close()


def test_a_file_can_be_read_from_any_offset(
    folder: PublicationFolder, client: PublicationClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CHUNK_BYTES", 999)
    publish(folder, 1)
    name = f"00000001/{DENSE}"
    data = (folder.path / name).read_bytes()
    for offset in (0, 1, 999, len(data) - 1, len(data)):
        assert b"".join(client.read(name, offset)) == data[offset:]
    with pytest.raises(PublishingError, match=f"offset: given {len(data) + 1}, expected up to {len(data)}"):
        list(client.read(name, len(data) + 1))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "00000001/../../x",
        "00000001/.hidden",
        "segments/../00000001-00000001-01234567.rows",
        7,
    ],
)
def test_files_outside_of_the_folder_are_refused(
    name: Any, folder: PublicationFolder, client: PublicationClient
) -> None:
    publish(folder, 1)
    with pytest.raises(PublishingError, match="expected a file of a version, or a segment"):
        list(client.read(name))
    assert client.status().newest == 1


def test_a_file_that_is_gone_is_one_clear_line(folder: PublicationFolder, client: PublicationClient) -> None:
    publish(folder, 1)
    with pytest.raises(PublishingError, match=r"00000009/dense\.safetensors: is not here \(any more\)"):
        list(client.read(f"00000009/{DENSE}"))


@pytest.mark.parametrize(
    ("action", "body", "message"),
    [
        ("steal", {}, "action 'steal': expected one of: manifest, status, wait, echo"),
        ("manifest", {"version": "x"}, "version: given 'x', expected a whole number"),
        ("wait", {"after": -1}, "after: given '-1', expected a whole number"),
        ("wait", {"timeout_s": 1e9}, "timeout_s: given 1000000000.0, expected 0 to 60"),
        ("status", {"x": "y" * 100_000}, "expected a JSON object of up to 65,536 bytes"),
    ],
)
def test_bad_requests_get_one_line(action: str, body: Any, message: str, client: PublicationClient) -> None:
    with pytest.raises(PublishingError, match=message) as refused:
        client.act(action, body)
    assert "\n" not in str(refused.value)
    assert json.loads(client.act("echo", {"a": 1})) == {"a": 1}


def test_a_client_that_does_not_read_holds_up_nobody(folder: PublicationFolder, client: PublicationClient) -> None:
    def write(place: Path) -> Publication:
        (place / "large").write_bytes(bytes(64 << 20))
        return Publication(1, "a", 1, 0.0, 0, {}, {})

    folder.add(1, write)
    slow = [client.read("00000001/large") for _ in range(8)]
    for each in slow:
        next(each)
    other = PublicationClient(client.address)
    assert other.status().newest == 1
    publish(folder, 2)
    assert other.wait(1).newest == 2
    assert len(b"".join(other.read(f"00000002/{DENSE}"))) > 4000
    for each in slow:
        each.close()
    other.close()


def test_other_addresses_need_token_and_tls_and_the_token_must_match(folder: PublicationFolder) -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        PublicationServer(folder, "0.0.0.0:0")
    with pytest.raises(ConfigError, match=r"publisher 10\.0\.0\.1: is not on this machine and needs a token"):
        PublicationClient("10.0.0.1:9000")
    security = ServerSecurity(token="0123456789abcdef")
    with PublicationServer(folder, "127.0.0.1:0", security=security) as server:
        address = f"127.0.0.1:{server.port}"
        stranger, friend = (
            PublicationClient(address, security=ClientSecurity(token=token)) for token in (None, "0123456789abcdef")
        )
        with pytest.raises(PublishingError, match="the token is missing or wrong"):
            stranger.status()
        with pytest.raises(PublishingError, match="the token is missing or wrong"):
            list(stranger.read("00000001/x"))
        assert friend.status().newest == 0
        stranger.close()
        friend.close()


def test_uploads_are_refused(client: PublicationClient) -> None:
    batch = pa.record_batch({"a": [1]})
    writer, _ = client._client.do_put(fl.FlightDescriptor.for_path("x"), batch.schema)
    with pytest.raises(fl.FlightError, match="takes no data"):
        writer.close()


def test_a_server_that_is_gone_is_one_clear_line() -> None:
    client = PublicationClient("127.0.0.1:1", timeout_s=1.0)
    with pytest.raises(PublishingError, match=r"127\.0\.0\.1:1: ") as gone:
        client.status()
    assert "\n" not in str(gone.value)
    client.close()
