"""Tables of eight times the memory: rows in use are in memory, the others in a file on a disk."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from headrace.cli.tables import window_table
from headrace.embeddings import embedding_bags
from headrace.embeddings.storage.protocol import ReadAheadStorage
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.training import JobConfig, Trainer, WindowResult

DIM = 32


def job(logs: Path, run: Path, disk: Path, memory: str) -> JobConfig:
    """One row per id. The optimizer is the row-wise one: its state is one number per row, also on the disk."""
    values = {
        "run": str(run),
        "data": {"path": str(logs), "window": {"kind": "folder"}},
        "embeddings": {
            "default": {"kind": "collisionless", "optimizer": {"kind": "rowwise_adagrad", "lr": 0.05}},
            "storage": {"kind": "tiered", "memory": memory, "path": str(disk)},
        },
        "model": {"kind": "dlrm", "embedding_dim": DIM, "bottom": [64], "top": [64]},
        "training": {"batch_size": 1024},
    }
    return JobConfig.from_dict(values, where="recipes/large_tables.py").resolve(Path.cwd())


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        windows: Results of the windows.
        num_rows: Rows in the table.
        table_bytes: Bytes of rows and optimizer state.
        from_memory: Share of the rows of all steps that were in memory.
    """

    windows: list[WindowResult]
    num_rows: int
    table_bytes: int
    from_memory: float


def run(output: Path, *, num_rows: int, memory: str, disk: Path | None = None) -> Outcome:
    """Generate a log of four windows and train on it.

    Args:
        output: Folder of the log and of the run.
        num_rows: Rows of the log.
        memory: Memory for rows of tables.
        disk: Folder on a local SSD, for the rows that are not in memory; None for `output`.
    """
    logs = output / "logs"
    if not logs.exists():
        generate_logs(GenerateConfig(rows=num_rows, windows=4, users=num_rows, items=num_rows // 2, seed=3), logs)
    trainer = Trainer(job(logs, output / "run", disk or output, memory), on_message=print)
    result = trainer.run()
    (group,) = [bags.table_group for bags in embedding_bags(trainer.components.model).values()]
    assert group is not None
    assert isinstance(group.storage, ReadAheadStorage)
    counters = group.storage.counters
    from_memory = 1 - counters.num_read_rows / max(1, counters.num_used_rows)
    return Outcome(result.windows, group.num_rows, group.num_rows * (4 * DIM + 4), from_memory)


def main() -> None:
    """Train, and print the windows and what the table took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder for the log and the run")
    parser.add_argument("--rows", type=int, default=400_000, help="rows of the log [400,000]")
    parser.add_argument("--memory", default="4MiB", help="memory for rows of tables [4MiB]")
    parser.add_argument("--disk", type=Path, help="folder on a local SSD; by default the output's")
    arguments = parser.parse_args()
    outcome = run(arguments.output, num_rows=arguments.rows, memory=arguments.memory, disk=arguments.disk)
    print(window_table(outcome.windows))
    print(
        f"{outcome.num_rows:,} rows of {outcome.table_bytes / 2**20:,.0f} MiB with {arguments.memory} of memory; "
        f"{outcome.from_memory:.1%} of the rows of all steps were in memory"
    )


if __name__ == "__main__":
    main()
