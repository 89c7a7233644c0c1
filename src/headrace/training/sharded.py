"""`ShardedTables`: manages the shards of a run's embeddings consistently with its checkpoints."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from torch import nn

from headrace.embeddings import embedding_bags
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.errors import ConfigError
from headrace.training.commits import table_group_name
from headrace.training.job import JobConfig
from headrace.training.process_group import ProcessGroup

__all__ = ["ShardedTables", "run_name"]


class ShardedTables:
    """The sharded embeddings of a run. All trainers call `end_window` and `save`, and trainer 0 carries them out.

    Args:
        job: The job, which has the addresses of the shards.
        model: The model whose embeddings are in the shards.
        process_group: The trainers.
    """

    def __init__(self, job: JobConfig, model: nn.Module, process_group: ProcessGroup) -> None:
        self._job = job
        self._process_group = process_group
        self._bags = {table_group_name(name): bags for name, bags in embedding_bags(model).items()}
        self._group: ShardGroup | None = None
        names = {table.name for bags in self._bags.values() for table in bags.tables}
        unknown = [name for name in job.cluster.traffic if name not in names]
        if unknown:
            raise ConfigError(f"cluster.traffic.{unknown[0]}: unknown, expected one of: {', '.join(sorted(names))}")

    def open(self, *, step: int, checkpoint: int | None) -> None:
        """Start a session from a checkpoint or from initial values; from then on embeddings are in the shards."""
        seed, config = self._job.training.seed, self._job.cluster
        table_groups = {name: TableGroupSpec(bags.tables, seed) for name, bags in self._bags.items()}
        traffic = {
            name: {table.name: config.traffic.get(table.name, 0.0) for table in bags.tables}
            for name, bags in self._bags.items()
        }
        self._group = ShardGroup(
            config.shards,
            table_groups,
            trainer=self._process_group.rank,
            num_trainers=self._process_group.size,
            session=self._process_group.share(uuid.uuid4().hex),
            run=run_name(self._job.run),
            step=step,
            checkpoint=checkpoint,
            traffic=traffic if config.traffic else None,
            options=config.options(),
        )
        for name, bags in self._bags.items():
            bags.use_store(self._group.store(name))

    def end_window(self, step: int) -> None:
        """Evict rows, after all trainers have made the window's last step."""
        if self._process_group.rank == 0:
            assert self._group is not None
            self._group.end_window(step)

    def save(self, folder: Path, step: int) -> None:
        """Make each shard write its part into a checkpoint's temporary folder."""
        assert self._group is not None
        self._group.save(folder.name, step)

    def close(self, *, wait: bool) -> None:
        """Close the connections."""
        if self._group is not None:
            self._group.close(wait=wait)
            self._group = None


def run_name(run: str) -> str:
    """The name by which shards identify a run: its folder's name and a hash of its path."""
    return f"{Path(run).name}-{hashlib.sha256(str(Path(run).resolve()).encode()).hexdigest()[:8]}"
