"""A trainer that leaves ends the waits of the others at once, whatever it was waiting for itself."""

from __future__ import annotations

from pathlib import Path

from forks import forks

TRAINER = """\
import os, sys, time
import torch.distributed as dist
from headrace.cluster.rendezvous import loopback_interface
from headrace.errors import HeadraceError
from headrace.training.peers import GlooConnections

os.environ["GLOO_SOCKET_IFNAME"] = loopback_interface()
rank, store = int(os.environ["RANK"]), dist.FileStore("store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
connections = GlooConnections(300.0)
receipt = connections.peers(0, 1).receive(1 - rank, 8, tag=1)  # of a message that is never sent
if rank == 0:
    store.wait(["receiving"])
    connections.close()
    dist.destroy_process_group()
    for _ in range(10_000):  # alive, and with its receipt, as a trainer that waits for a shard
        if os.path.exists("noticed"):
            break
        time.sleep(0.01)
    else:
        sys.exit("not noticed while this trainer is alive")
else:
    store.set("receiving", "")
    try:
        receipt.result()
    except HeadraceError:
        open("noticed", "w").close()
"""


def test_a_trainer_that_leaves_is_noticed_although_it_waits_for_a_message(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with forks() as forked:
        for rank in range(2):
            forked.start(f"import os; os.chdir({str(tmp_path)!r})\n{TRAINER}", output, RANK=str(rank))
        assert forked.wait() == [0, 0], output.read_text()
    assert (tmp_path / "noticed").exists()
