"""A relay in user space that delays messages: it adds latency, and limits bandwidth where `tc` cannot be used.

python -m schedule.relay --to HOST:PORT --rate-mbit 300 --latency-ms 0.5
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys

CHUNK = 1 << 16


class Bucket:
    """A token bucket shared by all connections in one direction, with 2 ms of unused bandwidth saved up at most."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def leaves_at(self, num_bytes: int, now: float) -> float:
        """Return the time at which a message of this size can be sent, and reserve the bandwidth."""
        if self._bytes_per_s is None:
            return now
        self._free_at = max(self._free_at, now - 0.002) + num_bytes / self._bytes_per_s
        return self._free_at


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bucket: Bucket, latency_s: float) -> None:
    """Forward bytes in one direction, in order, each chunk as soon as bucket and latency allow."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

    async def send() -> None:
        while True:
            at, data = await queue.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    sender = asyncio.create_task(send())
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            await queue.put((bucket.leaves_at(len(data), loop.time()) + latency_s, data))
    await queue.put((loop.time() + latency_s, b""))
    with contextlib.suppress(OSError):
        await sender


async def serve(options: argparse.Namespace) -> None:
    """Accept connections and relay them until killed."""
    host, _, port = options.to.rpartition(":")
    rate = None if not options.rate_mbit else options.rate_mbit * 1e6 / 8
    up, down = Bucket(rate), Bucket(rate)
    latency_s = options.latency_ms / 1000

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, far_writer, up, latency_s), pump(far_reader, writer, down, latency_s))
        for end in (writer, far_writer):
            end.close()

    server = await asyncio.start_server(relay, options.listen, 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", required=True)
    parser.add_argument("--listen", default="127.0.0.1")
    parser.add_argument("--rate-mbit", type=float, default=0.0)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parser.parse_args()))
