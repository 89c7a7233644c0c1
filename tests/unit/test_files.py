"""Files appear whole or not at all, and a full disk is one clear line from every writer."""

from __future__ import annotations

import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError

from headrace.errors import CheckpointError, ConfigError, HeadraceError, StorageError
from headrace.files import map_array, new_file, new_folder, write_text, writing
from headrace.logs import Schema
from headrace.logs.clustering import ClusterConfig, cluster_log
from headrace.logs.clustering.arrange import Arranger
from headrace.logs.clustering.keys import KEY_SCHEMA, RowOrder
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.logs.importers import import_criteo
from headrace.logs.quarantine import write_rejects
from headrace.logs.source import REJECT_SCHEMA
from headrace.logs.writer import ParquetLogWriter
from headrace.observe.jsonl import JsonlWriter
from headrace.observe.report import write_report
from headrace.observe.tensorboard import TensorBoard
from headrace.training.checkpoint import CheckpointFolder, Snapshot
from headrace.training.run_folder import RunFolder

NOISE = np.random.default_rng(0).random(20_000)


@contextmanager
def full_disk(num_bytes: int = 4_000) -> Iterator[None]:
    """The system refuses to let any file grow further than this, as it does when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def save_arrays(folder: Path) -> None:
    CheckpointFolder(folder / "checkpoints").save(Snapshot(1, {}, {"dense": {"w": NOISE}}))


def save_columns(folder: Path) -> None:
    CheckpointFolder(folder / "checkpoints").save(Snapshot(1, {}, {}, {"table": {"w": NOISE}}))


def save_state(folder: Path) -> None:
    CheckpointFolder(folder / "checkpoints").save(Snapshot(1, {"files": ["x" * 100] * 100}))


def write_log(folder: Path) -> None:
    table = pa.table({"x": NOISE})
    with ParquetLogWriter(folder / "logs", schema=table.schema) as writer:
        writer.write(table)


def generate(folder: Path) -> None:
    generate_logs(GenerateConfig(rows=1000, windows=1), folder / "generated")


def import_text(folder: Path) -> None:
    import_criteo(folder / "train.txt", folder / "imported")


def quarantine(folder: Path) -> None:
    rows = {
        "file": ["f"],
        "row_group": [0],
        "row": [0],
        "column": ["c"],
        "reason": ["r"],
        "raw": [NOISE.tobytes().hex()],
    }
    write_rejects(folder / "quarantine", "00000001", [pa.RecordBatch.from_pydict(rows, schema=REJECT_SCHEMA)])


def write_ledger(folder: Path) -> None:
    (folder / "run").mkdir(exist_ok=True)
    RunFolder(folder / "run").write_ledger(1, [1], [pa.array(NOISE.view(np.int64))])


def append_metrics(folder: Path) -> None:
    with JsonlWriter(folder / "metrics.jsonl") as writer:
        writer.write({"text": "x" * 10_000})


def cluster(folder: Path) -> None:
    schema = Schema.from_yaml(folder / "logs.yaml")
    cluster_log(folder / "plain", folder / "clustered", schema, ClusterConfig())


def arrange(folder: Path) -> None:
    rows = pa.record_batch({"x": NOISE})
    options = {"num_rows": len(NOISE), "row_bytes": 16.0, "memory_bytes": 60_000, "folder": folder}
    with Arranger(rows.schema, **options) as arranger:
        arranger.add(rows, np.arange(len(NOISE)))
        list(arranger.arranged())


def report(folder: Path) -> None:
    write_report(folder / "measured")


def config(folder: Path) -> None:
    (folder / "run").mkdir(exist_ok=True)
    RunFolder(folder / "run").write_config("x" * 10_000)


WRITERS = [
    save_arrays,
    save_columns,
    save_state,
    write_log,
    generate,
    import_text,
    quarantine,
    write_ledger,
    append_metrics,
    cluster,
    arrange,
    report,
    config,
]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    generate_logs(GenerateConfig(rows=2000, windows=1, users=50, items=50), tmp_path / "plain")
    shutil.move(tmp_path / "plain/schema.yaml", tmp_path / "logs.yaml")
    (tmp_path / "train.txt").write_text(("1\t" + "\t".join(["3"] * 13 + ["0a1b2c3d"] * 26) + "\n") * 9)
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured/metrics.jsonl").write_text('{"kind": "step", "step": 1, "rows": 10, "checkpoint": 1}\n')
    return tmp_path


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(write: Callable[[Path], None], inputs: Path) -> None:
    files = {name: content for name, content in everything_in(inputs).items() if content is not None}
    with full_disk(), pytest.raises(HeadraceError, match=r"^\S+: cannot be written: File too large$") as caught:
        write(inputs)
    assert isinstance(caught.value, StorageError | CheckpointError)
    after = {name: content for name, content in everything_in(inputs).items() if content}
    started = {"generated/schema.yaml", "metrics.jsonl"}  # whole, and added to when the command is given again
    assert {name: content for name, content in after.items() if name not in started} == files
    shutil.rmtree(inputs / "generated", ignore_errors=True)
    write(inputs)  # when there is room


def test_a_full_disk_ends_events_for_tensorboard_with_the_last_whole_one(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written: list[int] = []

    def write(board: TensorBoard) -> None:
        for step in range(1000):
            board.write({"kind": "step", "step": step, "loss": 0.5})
            written.append(step)

    full = r"tfevents\S+: cannot be written: File too large$"
    with TensorBoard(tmp_path) as board, full_disk(), pytest.raises(StorageError, match=full):
        write(board)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("step/loss")] == written


def test_a_full_disk_while_duckdb_sorts_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    numbers = np.random.default_rng(0).integers(0, 2**62, 200_000)
    columns = [pa.array(column) for column in (np.arange(len(numbers)), numbers.astype(np.uint64), numbers, numbers)]
    keys = pa.RecordBatch.from_arrays(columns, schema=KEY_SCHEMA)
    with full_disk(), pytest.raises(StorageError, match=r"^\S+: cannot be written: [^\n]+$"):
        RowOrder(iter([keys]), gap_us=None, memory_bytes=6 << 20, folder=tmp_path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "whatever"), "No space left on device"),
        (SafetensorError("Error while serializing: I/O error: No space (os error 28)"), "No space left on device"),
        (pa.ArrowException("Error writing bytes. Detail: [errno 122] quota"), "Disk quota exceeded"),
        (pa.ArrowInvalid("two\n  lines"), "two lines"),
        (OSError("100 requested and 0 written"), "100 requested and 0 written"),
    ],
)
def test_what_libraries_say_of_the_system_becomes_the_systems_own_words(error: Exception, said: str) -> None:
    with pytest.raises(StorageError, match=f"^out/x: cannot be written: {said}$"), writing("out/x"):
        raise error


def test_errors_of_duckdb_are_translated() -> None:
    duckdb = pytest.importorskip("duckdb")
    with pytest.raises(StorageError, match=r"^out: cannot be written: IO Error"), writing("out"):
        raise duckdb.IOException("IO Error: could not write")


def test_errors_that_are_not_of_writing_pass() -> None:
    for error in (ConfigError("a: given b"), ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), writing("out"):
            raise error


def test_a_file_and_a_folder_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")
    for appearing in (new_file(tmp_path / "a"), new_folder(tmp_path / "b")):
        with suppress(ValueError), appearing as partial:
            (partial / "x" if partial.is_dir() else partial).write_text("half")
            raise ValueError
    assert everything_in(tmp_path) == {"a": b"before"}
    with new_folder(tmp_path / "b") as folder:
        pq.write_table(pa.table({"x": [1]}), folder / "x")
    assert sorted(everything_in(tmp_path)) == ["a", "b", "b/x"]


def test_headers_of_arrays_are_parsed_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, busy, overlaps, plain = tmp_path / "a.npy", threading.Lock(), [], np.lib.format.open_memmap
    np.save(path, np.arange(3))

    def watched(*args: object, **options: object) -> np.ndarray:
        if not busy.acquire(blocking=False):
            overlaps.append(1)
            return plain(*args, **options)  # type: ignore[arg-type]
        try:
            threading.Event().wait(0.001)  # lets the others in, if they may
            return plain(*args, **options)  # type: ignore[arg-type]
        finally:
            busy.release()

    monkeypatch.setattr(np.lib.format, "open_memmap", watched)
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda _: map_array(path), range(40)))
    assert not overlaps
    assert all(array.tolist() == [0, 1, 2] for array in arrays)
