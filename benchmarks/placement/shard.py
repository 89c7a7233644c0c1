"""The shard of `bench_placement.py`: prints its port, and serves the checkpoints of one run until its input ends."""

from __future__ import annotations

import sys
from pathlib import Path

from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard

if __name__ == "__main__":
    server = ShardServer(Shard(checkpoints=Path(sys.argv[2])), f"{sys.argv[1]}:0", threads=1)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.shutdown()
