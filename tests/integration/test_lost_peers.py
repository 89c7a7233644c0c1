"""A trainer that leaves ends the waits of the others at once, whatever it was waiting for itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRAINER = """\
import os, sys
import torch.distributed as dist
from headrace.cluster.rendezvous import loopback_interface
from headrace.errors import HeadraceError
from headrace.training.peers import GlooConnections

os.environ["GLOO_SOCKET_IFNAME"] = loopback_interface()
rank, store = int(sys.argv[1]), dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
connections = GlooConnections(300.0)
receipt = connections.peers(0, 1).receive(1 - rank, 8, tag=1)  # of a message that is never sent
if rank == 0:
    store.wait(["receiving"])
    connections.close()
    dist.destroy_process_group()
    print("left", flush=True)
    sys.stdin.read()  # alive, and with its receipt, as a trainer that waits for a shard
else:
    store.set("receiving", "")
    try:
        receipt.result()
    except HeadraceError:
        print("noticed")
"""


def test_a_trainer_that_leaves_is_noticed_although_it_waits_for_a_message(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAINER]
    where = str(tmp_path / "store")
    with subprocess.Popen([*command, "0", where], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leaves:
        try:
            stays = subprocess.run([*command, "1", where], stdout=subprocess.PIPE, text=True, timeout=100, check=False)
        finally:
            leaves.kill()
    assert stays.stdout.splitlines()[-1:] == ["noticed"]
