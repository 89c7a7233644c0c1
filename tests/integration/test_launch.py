"""Several trainers and shards give the parameters of one process, also when a shard is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
from forks import forks

from headrace.cluster import train_job
from headrace.cluster.training import SHARDS_VARIABLE
from headrace.embeddings import Keys, TableConfig
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.shards.security import TOKEN_VARIABLE
from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.tables.parts import join_parts
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.placement.links import seconds_per_row
from headrace.scoring import Scorer
from headrace.testing.processes import running_children
from headrace.training import CheckpointFolder, JobConfig, Trainer, sharded

JOB = """\
run: {run}
data: {{path: logs}}
pipeline: {{shuffle: {{num_rows: 700, seed: 3}}, workers: 1, tuner: none}}
embeddings:
  default: {{kind: hashed, num_embeddings: 300, optimizer: {{kind: rowwise_adagrad, lr: 0.05}}}}
  tables: {{item: {{kind: collisionless, num_embeddings: 64, evict_after: 1}}}}
model: {{kind: dlrm, embedding_dim: 8, bottom: [16], top: [16]}}
training:
  {{batch_size: {batch}, threads: 1, row_ledger: true, checkpoint_every_steps: 10,
    learning_rate_schedule: {{kind: step_decay, every_rows: 900, warm_up_rows: 500}},
    dense_optimizer: {{kind: sgd, lr: 0.05}}}}
placement: {placement}
"""
PLACEMENTS = {
    "none": "none",
    "lookahead": "lookahead",
    "small": "{memory: 60KiB, window: 3, verify: true}",
}
NO_WINDOW = {"no window": "{memory: 60KiB, window: 0, verify: true}"}
MICRO_BATCHES = "{policy: lookahead, memory: 80KiB, window: 0, split: fewest_missing_first}"
ROWS = 4_050  # the last batch of a window is not full, nor even


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of two windows, and a run of one process over them with batches of 64 rows in `once`."""
    folder = tmp_path_factory.mktemp("launch")
    generate_logs(GenerateConfig(rows=ROWS, windows=2, users=300, items=200, seed=5), folder / "logs")
    Trainer(write_job(folder, "once", 64)).run()
    return folder


def write_job(folder: Path, run: str, batch: int, placement: str = "auto") -> JobConfig:
    (folder / f"{run}.yaml").write_text(JOB.format(run=run, batch=batch, placement=placement))
    return JobConfig.from_file(folder / f"{run}.yaml")


def parameters(run: Path) -> dict[str, npt.NDArray[Any]]:
    """Dense parameters, metrics, and table columns in the order of (table, id)."""
    snapshot, refused = CheckpointFolder(run / "checkpoints").load_latest()
    assert snapshot is not None
    assert not refused
    found = {f"{group}.{name}": array for group, part in snapshot.arrays.items() for name, array in part.items()}
    for table in {*snapshot.columns, *snapshot.parts}:
        columns = join_parts(snapshot.parts[table]) if table in snapshot.parts else snapshot.columns[table]
        order = np.lexsort((columns["ids"], columns["tables"]))
        for name, column in columns.items():
            if name not in ("header", "rows"):
                found[f"{table}.{name}"] = np.asarray(
                    column if name.startswith(("pending", "removed")) else column[order]
                )
    found["rows"] = np.array(list(snapshot.state["rows"].values()))
    return found


def start_shards(servers: list[ShardServer], checkpoints: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for server in servers:
        server.shutdown()
    servers[:] = [ShardServer(Shard(checkpoints=checkpoints), "127.0.0.1:0") for _ in range(count)]
    monkeypatch.setenv(SHARDS_VARIABLE, ",".join(f"127.0.0.1:{server.port}" for server in servers))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_checkpoints_move_between_one_process_and_any_number_of_shards_bit_for_bit(
    folder: Path, placement: str, shards: list[ShardServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"moved {placement}"
    job = write_job(folder, run, 64, PLACEMENTS[placement])
    checkpoints = folder / run / "checkpoints"
    stops = iter([25, 12, 14])  # steps: in one process, in two shards, in three, in one process again
    for count in (0, 2, 3):
        start_shards(shards, checkpoints, count, monkeypatch)
        left = next(stops)

        def enough() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        _, result = train_job(job, should_stop=enough)
        assert result.stopped
    monkeypatch.delenv(SHARDS_VARIABLE)
    train_job(job)
    expected, found = parameters(folder / "once"), parameters(folder / run)
    assert {name for name in expected if not np.array_equal(expected[name], found[name])} == set()


@pytest.mark.parametrize(("row_us", "reason"), [(5.4, "lookahead: the only trainer"), (0.4, "none: reading a row")])
def test_auto_keeps_rows_that_take_long_to_read(
    folder: Path, row_us: float, reason: str, shards: list[ShardServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"auto {row_us}"
    job = write_job(folder, run, 64)
    start_shards(shards, folder / run / "checkpoints", 2, monkeypatch)
    monkeypatch.setattr(sharded, "seconds_per_row", lambda store: 1e-6 * row_us)
    train_job(job)
    decisions = (folder / run / "decisions.jsonl").read_text()
    assert reason in decisions
    assert ("rows that steps used were here" in decisions) == reason.startswith("lookahead")
    expected, found = parameters(folder / "once"), parameters(folder / run)
    assert {name for name in expected if not np.array_equal(expected[name], found[name])} == set()


def test_measuring_the_links_changes_nothing_in_the_shards(
    folder: Path, shards: list[ShardServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    start_shards(shards, folder / "measured" / "checkpoints", 2, monkeypatch)
    tables = [
        TableConfig(name="any", kind="collisionless", embedding_dim=4, admission_count=2),
        TableConfig(name="three", kind="direct", num_embeddings=3, embedding_dim=4),
    ]
    addresses = os.environ[SHARDS_VARIABLE].split(",")
    group = ShardGroup(addresses, {"group": TableGroupSpec(tables, 0)}, session="s", run="measured")
    try:
        store, keys = group.store("group"), Keys(np.zeros(64, np.int32), np.arange(64), np.zeros(64, np.int32))
        assert seconds_per_row(store) > 0
        assert not store.seen_keys(1 << 12).contains(keys).any()
    finally:
        group.close(wait=True)


@pytest.mark.parametrize("placement", PLACEMENTS | NO_WINDOW)
def test_a_run_that_loses_a_shard_ends_with_the_same_bits_and_is_scored_by_one_process(
    folder: Path, placement: str, shards: list[ShardServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"lossy {placement}"
    job = write_job(folder, run, 64, (PLACEMENTS | NO_WINDOW)[placement])
    start_shards(shards, folder / run / "checkpoints", 2, monkeypatch)
    said: list[str] = []
    steps = 0

    def forget_at_step_37() -> bool:
        nonlocal steps
        steps += 1
        if steps == 37:
            shards[1]._shard._request = None  # as if it had been killed and started again
            for group in shards[1]._shard._served.values():
                group.close("has no session, because it was started after training")
        return False

    _, result = train_job(job, should_stop=forget_at_step_37, on_message=said.append)
    assert len(result.windows) == 2
    assert any("shard 1 (127.0.0.1" in line and "returning to the newest checkpoint" in line for line in said)
    expected, found = parameters(folder / "once"), parameters(folder / run)
    assert {name for name in expected if not np.array_equal(expected[name], found[name])} == set()
    scores = [
        Scorer(JobConfig.from_file(folder / f"{run}.yaml")).evaluate(str(folder / "logs")) for run in ("once", run)
    ]
    assert scores[0] == scores[1]


def test_a_run_in_micro_batches_that_loses_a_shard_trains_each_row_once_and_differs_by_rounding(
    folder: Path, shards: list[ShardServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(folder, "split", 64, MICRO_BATCHES)
    start_shards(shards, folder / "split" / "checkpoints", 2, monkeypatch)
    steps = 0

    def lose_a_shard_at_step_37() -> bool:
        nonlocal steps
        steps += 1
        if steps == 37:
            shards[1]._shard._request = None
            for group in shards[1]._shard._served.values():
                group.close("has no session, because it was started after training")
        return False

    train_job(job, should_stop=lose_a_shard_at_step_37)
    records = [json.loads(line) for line in (folder / "split" / "metrics.jsonl").read_text().splitlines()]
    assert all("pull" in record["seconds"] for record in records if record["kind"] == "step")
    assert sorted(ledger(folder / "split")) == sorted(ledger(folder / "once"))
    expected, found = parameters(folder / "once"), parameters(folder / "split")
    assert expected.keys() == found.keys()
    assert any(not np.array_equal(expected[name], found[name]) for name in expected)
    for name, values in expected.items():
        scale = np.abs(values).max(initial=0)
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_a_killed_trainer_and_killed_shards_give_the_same_bits(
    folder: Path, shards: list[ShardServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that the trainer kept when it was killed are those of the newest checkpoint again."""
    job = write_job(folder, "killed", 64, "lookahead")
    start_shards(shards, folder / "killed" / "checkpoints", 2, monkeypatch)
    with forks() as forked:
        where = {SHARDS_VARIABLE: os.environ[SHARDS_VARIABLE]}
        trainer = forked.command(["train", str(folder / "killed.yaml")], folder / "killed.log", **where)
        while not (folder / "killed" / "checkpoints" / "00000001").exists():
            assert psutil.Process(trainer).status() != psutil.STATUS_ZOMBIE, (folder / "killed.log").read_text()
            time.sleep(0.01)
        os.kill(trainer, signal.SIGKILL)
        assert forked.wait() == [-signal.SIGKILL]
    start_shards(shards, folder / "killed" / "checkpoints", 2, monkeypatch)
    said: list[str] = []
    train_job(job, on_message=said.append)
    assert any(line.startswith("going on from checkpoint") for line in said)
    assert "lookahead: the only trainer keeps" in (folder / "killed" / "decisions.jsonl").read_text()
    expected, found = parameters(folder / "once"), parameters(folder / "killed")
    assert {name for name in expected if not np.array_equal(expected[name], found[name])} == set()


def test_features_change_in_shards_as_in_one_process(
    folder: Path, shards: list[ShardServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = [
        "{sparse: {user: [], item: [], segment_0: []}}",
        "{dense: {item_x0: []}, sparse: {history: [], item: [], user: []}}",
    ]
    for run, counts in {"changed": (0, 0), "changed in shards": (2, 3)}.items():
        for count, plan in zip(counts, features, strict=True):
            write_job(folder, run, 64, "lookahead")
            with (folder / f"{run}.yaml").open("a") as file:
                file.write(f"features: {plan}\n")
            start_shards(shards, folder / run / "checkpoints", count, monkeypatch)
            train_job(JobConfig.from_file(folder / f"{run}.yaml"), windows=1, change_features=plan != features[0])
    expected, found = parameters(folder / "changed"), parameters(folder / "changed in shards")
    assert expected.keys() == found.keys()
    assert {name for name in expected if not np.array_equal(expected[name], found[name])} == set()
    assert {"embeddings.weights", "bottom.0.weight"} <= {name.removeprefix("dense.") for name in found}


def test_two_trainers_and_two_shards_one_of_them_killed_equal_one_process(folder: Path) -> None:
    write_job(folder, "launched", 32)
    command = [sys.executable, "-m", "headrace", "launch", str(folder / "launched.yaml"), "--trainers=2", "--shards=2"]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "launched.log").open("w"))
        process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        stack.callback(process.kill)
        wait_for_the_first_checkpoint(process, folder / "launched" / "checkpoints")
        assert_only_this_machine_is_listened_to(process.pid)
        kill_a_shard(process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert process.wait() == 0, (folder / "launched.log").read_text()
    text = (folder / "launched.log").read_text()
    assert "launch | shard-1 ended with code -9; restarting it" in text
    for rank in range(2):
        assert f"trainer-{rank} | shard 1 (127.0.0.1" in text or f"trainer-{rank} | another trainer has died" in text
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    expected, found = parameters(folder / "once"), parameters(folder / "launched")
    assert found["rows"].tolist() == [ROWS, ROWS, 0, 0, 0]
    for name, values in expected.items():
        if name.startswith(("dense", "embeddings.weights", "embeddings.slot")):
            scale = np.abs(values).max()
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6 * scale, err_msg=name)
        elif name.startswith("embeddings"):
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    trained = [row for rank in ("", "trainers/1") for row in ledger(folder / "launched" / rank)]
    assert sorted(trained) == sorted(ledger(folder / "once"))


def test_samples_of_two_trainers_are_trained_once_also_after_a_kill_and_by_one_trainer(
    folder: Path, shards: list[ShardServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer 0 has read samples that trainer 1 trains, and the other way round, when one of them is killed."""
    placement = "{policy: lookahead, memory: 1MiB, window: 4, samples: by_cost, verify: true}"
    write_job(folder, "placed", 32, placement)
    command = [sys.executable, "-m", "headrace", "launch", str(folder / "placed.yaml"), "--trainers=2", "--shards=1"]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "placed.log").open("w"))
        process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        stack.callback(process.kill)
        wait_for_the_first_checkpoint(process, folder / "placed" / "checkpoints")
        kill_a_trainer(process)
        assert process.wait() != 0, (folder / "placed.log").read_text()
    start_shards(shards, folder / "placed" / "checkpoints", 2, monkeypatch)
    said: list[str] = []
    train_job(write_job(folder, "placed", 64, placement), on_message=said.append)
    assert "unused placement.samples: there is one trainer; headrace launch --trainers starts more" in said
    trained = [row for rank in ("", "trainers/1") for row in ledger(folder / "placed" / rank)]
    assert sorted(trained) == sorted(ledger(folder / "once"))
    expected, found = parameters(folder / "once"), parameters(folder / "placed")
    assert found["rows"].tolist() == [ROWS, ROWS, 0, 0, 0]
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        if name.startswith("metrics.running"):  # the first predictions know the labels before them, of their trainer
            continue
        scale = np.abs(values).max(initial=0)
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.slow
def test_actors_of_ray_train_the_same_model(folder: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs ray: pip install 'headrace[cluster]'")
    from headrace.cluster.on_ray import train_on_ray

    write_job(folder, "actors", 64)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    try:
        names, step = train_on_ray(folder / "actors.yaml", trainers=1, shards=1, windows=1)
    finally:
        ray.shutdown()
    assert len(names) == 1
    write_job(folder, "first", 64)
    Trainer(JobConfig.from_file(folder / "first.yaml")).run(windows=1)
    expected, found = parameters(folder / "first"), parameters(folder / "actors")
    assert {name for name in expected if not np.array_equal(expected[name], found[name])} == set()
    assert step == -(-ROWS // 2 // 64)


def wait_for_the_first_checkpoint(process: subprocess.Popen[bytes], checkpoints: Path) -> None:
    while not (checkpoints / "00000001").exists():
        assert process.poll() is None
        time.sleep(0.01)


def kill_a_trainer(process: subprocess.Popen[bytes]) -> None:
    running_children(process.pid, "train")[-1].kill()


def kill_a_shard(process: subprocess.Popen[bytes]) -> None:
    running_children(process.pid, "shard")[-1].kill()


def assert_only_this_machine_is_listened_to(launcher: int) -> None:
    """Every socket that any process of a launched job listens at is on loopback, and no command line has the token."""
    processes = [psutil.Process(launcher), *psutil.Process(launcher).children(recursive=True)]
    listening = {process.pid: listening_at(process) for process in processes}
    roles = {process.pid: process.cmdline() for process in processes}
    for role in ("shard", "train"):  # trainers listen for each other's gradients
        found = [pid for pid, command in roles.items() if role in command]
        assert len(found) == 2, roles
        assert all(listening[pid] for pid in found), listening
    assert {host for hosts in listening.values() for host in hosts} == {"127.0.0.1"}
    tokens = {process.environ().get(TOKEN_VARIABLE) for process in processes if process.pid != launcher}
    (token,) = tokens
    assert token is not None
    assert not [command for command in roles.values() if token in " ".join(command)]
    shard = next(process for process in processes if "shard" in roles[process.pid])
    (port,) = {each.laddr.port for each in shard.net_connections("inet") if each.status == psutil.CONN_LISTEN}
    refused = pytest.raises(fl.FlightUnauthenticatedError, match="the token is missing or wrong")
    with fl.connect(f"grpc://127.0.0.1:{port}") as stranger, refused:
        list(stranger.do_action(fl.Action("status", b"{}")))


def listening_at(process: psutil.Process) -> list[str]:
    """Addresses; gRPC's are IPv4 ones as an IPv6 socket has them."""
    return [
        each.laddr.ip.removeprefix("::ffff:")
        for each in process.net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    ]


MEET = """
import os, time
from headrace.cluster.rendezvous import Rendezvous
rendezvous = Rendezvous(60.0)
for number in range(2):
    with rendezvous.round() as group:
        print(os.getpid(), group.rank, group.share(f"round {number}"), flush=True)
        while not os.path.exists(f"seen {number}"):
            time.sleep(0.01)
        group.share(None)
"""


def test_trainers_started_by_hand_on_one_machine_listen_to_it_alone(
    tmp_path: Path,
) -> None:
    with forks() as forked:
        for host in ("127.0.0.1", "localhost"):
            folder = tmp_path / host
            folder.mkdir()
            with socket.create_server(("127.0.0.1", 0)) as probe:
                variables = {"MASTER_ADDR": host, "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
            variables["GLOO_SOCKET_IFNAME"] = ""
            code = f"import os; os.chdir({str(folder)!r})\n{MEET}"
            trainers = [forked.start(code, folder / f"{rank}.log", **variables, RANK=str(rank)) for rank in range(2)]
            for number in range(2):
                for rank, trainer in enumerate(trainers):
                    wait_for_line(folder / f"{rank}.log", f"{trainer} {rank} round {number}")
                hosts = [listening_at(psutil.Process(trainer)) for trainer in trainers]
                assert all(hosts), hosts
                assert {each for listening in hosts for each in listening} == {"127.0.0.1"}
                (folder / f"seen {number}").touch()
            assert forked.wait() == [0, 0]


def wait_for_line(log: Path, line: str) -> None:
    while not log.exists() or line not in log.read_text().splitlines():
        assert "Traceback" not in (log.read_text() if log.exists() else ""), log.read_text()
        time.sleep(0.01)


def ledger(run: Path) -> list[tuple[int, int]]:
    """(step, row id) of every row trained on."""
    tables = [pq.read_table(path) for path in sorted((run / "ledger").glob("*.parquet"))]
    return [
        (s, r)
        for table in tables
        for s, r in zip(*(table.column(n).to_pylist() for n in ("step", "row_id")), strict=True)
    ]
