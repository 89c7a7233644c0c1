"""`RedisSink`: rows in Redis, a hash per table; see `docs/publishing.md` for the layout and how to read it.

A version becomes visible in one transaction. That of a delta has its rows. If there are too many, or these are all
rows, they are first written to hashes that no reader looks at (a *generation*), in many calls, and the transaction only
moves the pointer to them::

    headrace                     version 7, generation 3           version 8, generation 8
    headrace:3:embeddings:items  1: ..., 2: ..., 5: ...     -->
    headrace:8:embeddings:items  1: ..., 2: ... (written)          1: ..., 2: ..., 9: ...
    headrace:unfinished          8
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from headrace.errors import ConfigError, MissingExtra, StorageError
from headrace.publishing.publications import DENSE, JOB, Publication, PublicationFolder
from headrace.publishing.sinks.sink import Cursor, rows_by_table

__all__ = ["RedisSink"]

FORMAT = "headrace-redis 1"
PREFIX = "headrace"

ROWS_PER_CALL = 1_000
"""Rows of an HSET or HDEL. Redis answers nobody else meanwhile: 0.4 ms at dimension 16."""
MAX_TRANSACTION_ROWS = 100_000
"""Rows of a transaction. Redis answers nobody else while it is executed: 43 ms for as many at dimension 16."""
CALLS_AT_ONCE = 16
"""Calls that are sent before their answers are awaited."""
CONNECT_S, ANSWER_S = 5.0, 60.0
"""Seconds to wait for a connection, and for an answer."""

Call = tuple[Any, ...]


class RedisSink:
    """Keeps the newest version in Redis.

    Args:
        url: `redis://[:PASSWORD@]HOST:PORT/DB`, or `rediss://` with TLS; `?prefix=NAME` begins all keys, by default
            `headrace`, and several models have one each.

    Raises:
        ConfigError: The URL is invalid.
        MissingExtra: The client library is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise MissingExtra("redis", "publish") from None
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        self._prefix = options.pop("prefix", PREFIX)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._errors: Any = redis.RedisError
        self._lost_race: Any = redis.WatchError
        try:
            # A transaction must not be repeated before its outcome is known, so nothing is retried here.
            self._client: Any = redis.Redis.from_url(
                urlunsplit(parts._replace(query=urlencode(options))),
                socket_connect_timeout=CONNECT_S,
                socket_timeout=ANSWER_S,
                retry=Retry(NoBackoff(), 0),
            )
            _ = self._client.connection_pool.make_connection()
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--to: given {self.name}, expected redis://HOST:PORT/DB?prefix=NAME: {error}") from error

    def cursor(self) -> Cursor | None:
        """See `Sink`."""
        with self._calling():
            return self._cursor_of(self._client.hgetall(self._prefix))

    def write(self, folder: PublicationFolder, publication: Publication, after: Cursor | None) -> None:
        """See `Sink`."""
        dense = (folder.place(publication.version) / DENSE).read_bytes()
        job = (folder.place(publication.version) / JOB).read_bytes() if JOB in publication.files else b""
        calls = None if after is None else self._delta(folder, publication, after.version)
        with self._calling():
            self._drop_unfinished()
            generation = None
            if calls is None:
                calls, generation = [], str(publication.version)
                self._write_generation(folder, publication, generation)
            self._commit(publication, after, calls, generation, {"dense": dense, "job": job})

    def close(self) -> None:
        """See `Sink`."""
        self._client.close()

    def _cursor_of(self, found: dict[bytes, bytes]) -> Cursor | None:
        if not found:
            return None
        kind = found.get(b"format", b"").decode(errors="replace")
        if kind != FORMAT:
            raise ConfigError(f"{self.name}: key {self._prefix} is of format {kind!r}, expected {FORMAT!r}")
        return Cursor(found[b"lineage"].decode(), int(found[b"version"]))

    def _delta(self, folder: PublicationFolder, publication: Publication, since: int) -> list[tuple[str, Call]] | None:
        """Calls, without the generation, that lead to a version; None if these would be all rows, or too many."""
        changes = folder.changes(publication, since)
        if changes.is_everything:
            return None
        calls, num_rows = [], 0
        for name, _, columns in changes.blocks:
            num_rows += len(columns["ids"])
            if num_rows > MAX_TRANSACTION_ROWS:
                return None
            calls += list(_calls(publication, name, columns))
        return calls

    def _write_generation(self, folder: PublicationFolder, publication: Publication, generation: str) -> None:
        """Write all rows to hashes of their own."""
        self._client.set(self._key("unfinished"), generation)
        self._unlink_generation(generation)
        pipeline = self._client.pipeline(transaction=False)
        for name, _, columns in folder.changes(publication, 0).blocks:
            for table, call in _calls(publication, name, columns):
                pipeline.execute_command(call[0], self._key(generation, table), *call[1:])
                if len(pipeline) >= CALLS_AT_ONCE:
                    pipeline.execute()
        pipeline.execute()

    def _commit(
        self,
        publication: Publication,
        after: Cursor | None,
        calls: list[tuple[str, Call]],
        generation: str | None,
        values: dict[str, bytes],
    ) -> None:
        """Make a version visible, if nobody else wrote one since."""
        with self._client.pipeline() as transaction:
            transaction.watch(self._prefix)
            found = transaction.hgetall(self._prefix)
            if self._cursor_of(found) != after:
                raise StorageError(f"{self.name}: key {self._prefix} was written by another publisher")
            before = found.get(b"generation", b"").decode()
            transaction.multi()
            for table, call in calls:
                transaction.execute_command(call[0], self._key(before, table), *call[1:])
            for name, value in values.items():
                transaction.set(self._key(name), value)
            transaction.hset(self._prefix, mapping=_description(publication, generation or before))
            transaction.delete(self._key("unfinished"))
            if generation is not None and before:
                transaction.set(self._key("unfinished"), before)  # until its hashes are gone
            try:
                transaction.execute()
            except self._lost_race:
                raise StorageError(f"{self.name}: key {self._prefix} was written by another publisher") from None
        if generation is not None and before:
            self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        """Delete the hashes of a generation that was not completed, or that was replaced."""
        generation = self._client.get(self._key("unfinished"))
        if generation is not None:
            self._unlink_generation(generation.decode())
            self._client.delete(self._key("unfinished"))

    def _unlink_generation(self, generation: str) -> None:
        pattern = _escaped(self._key(generation, "")) + "*"
        for key in list(self._client.scan_iter(match=pattern, count=1_000)):
            self._client.unlink(key)

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    @contextmanager
    def _calling(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise StorageError(f"{self.name}: {' '.join(str(error).split())}") from error


def _calls(publication: Publication, table_group: str, columns: Any) -> Iterator[tuple[str, Call]]:
    """HSET and HDEL of a block, with the end of the key: table group and table. Tables of two groups share names."""
    for table, ids, weights in rows_by_table(publication, table_group, columns):
        name = f"{table_group}:{table}"
        fields = [b"%d" % each for each in ids.tolist()]
        if weights is None:
            for begin in range(0, len(fields), ROWS_PER_CALL):
                yield name, ("HDEL", *fields[begin : begin + ROWS_PER_CALL])
            continue
        data, width = weights.astype("<f4", copy=False).tobytes(), 4 * weights.shape[1]
        pairs = [b""] * (2 * len(fields))
        pairs[::2] = fields
        pairs[1::2] = [data[at : at + width] for at in range(0, len(data), width)]
        for begin in range(0, len(pairs), 2 * ROWS_PER_CALL):
            yield name, ("HSET", *pairs[begin : begin + 2 * ROWS_PER_CALL])


def _description(publication: Publication, generation: str) -> dict[str, str | int | float]:
    tables = {
        name: {"embedding_dim": parts[0].embedding_dim, "tables": [str(table["name"]) for table in parts[0].tables]}
        for name, parts in publication.tables.items()
    }
    return {
        "format": FORMAT,
        "lineage": publication.lineage,
        "version": publication.version,
        "generation": generation,
        "step": publication.step,
        "cut_at": repr(publication.cut_at),
        "tables": json.dumps(tables),
    }


def _escaped(text: str) -> str:
    """A text as a pattern of SCAN."""
    return "".join(f"\\{letter}" if letter in "*?[]^\\" else letter for letter in text)
