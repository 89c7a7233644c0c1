"""`JobConfig`: a job file, which defines the model, the logs and how to train."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from headrace.config import Config, read_yaml, whole_number_or
from headrace.embeddings import EmbeddingsConfig
from headrace.embeddings.shards.plan import PlanKind
from headrace.embeddings.shards.precision import Precision
from headrace.embeddings.shards.security import ClientSecurity, read_token
from headrace.errors import ConfigError
from headrace.logs import BadRowPolicy, Schema, WindowConfig, check_output, list_files, schema_beside
from headrace.logs.files import printable
from headrace.models import DLRMConfig, ModelConfig
from headrace.paths import local_path, logs_location
from headrace.placement.config import PlacementConfig
from headrace.publishing.config import PublishConfig
from headrace.registry import TUNERS, OneOf
from headrace.scheduling.config import SchedulerConfig
from headrace.training.batch_size import LARGEST_BATCH, AskedBatchSize
from headrace.training.checkpoint_writer import CheckpointsConfig
from headrace.training.dense_optimizer import Adam, DenseOptimizerConfig
from headrace.training.learning_rate import LearningRateScheduleConfig
from headrace.training.precision import AskedPrecision

if TYPE_CHECKING:
    from headrace.embeddings.shards.group import GroupOptions

__all__ = ["ClusterConfig", "DataConfig", "JobConfig", "PipelineConfig", "ShuffleConfig", "TrainingConfig"]


class DataConfig(Config):
    """The logs, and how they are divided into windows."""

    path: str
    """File, folder, glob or fsspec URL of the logs."""
    columns: Schema | str | None = Field(default=None, alias="schema")
    """The schema, or the path of its YAML file; by default `schema.yaml` in the logs' folder."""
    window: WindowConfig = WindowConfig()
    """How the logs are divided into increments of training."""
    bad_rows: BadRowPolicy = BadRowPolicy()
    """How rows that violate the schema are handled."""


class ShuffleConfig(Config):
    """Shuffles rows within blocks; by default rows are trained on in log order."""

    num_rows: int = Field(ge=2)
    """Rows per block."""
    seed: int = 0
    """Seed of the permutation."""
    by: Literal["row", "session"] = "row"
    """Unit of shuffling: single rows, or whole sessions whose rows stay adjacent and in order."""


class PipelineConfig(Config):
    """How batches are prepared. Only `map`, `filter` and `shuffle` affect the contents of batches."""

    map: tuple[str, ...] = ()
    """User functions RecordBatch -> RecordBatch, given as "package.module:function"."""
    filter: tuple[str, ...] = ()
    """User functions RecordBatch -> bool array, applied after `map`."""
    shuffle: ShuffleConfig | None = None
    """Shuffling of rows; None keeps log order."""
    executor: Literal["inline", "thread", "process"] = "thread"
    """Where user functions run: in threads, or in processes for Python code that holds the GIL."""
    workers: int | None = Field(default=None, ge=1)
    """Workers per parallel stage; None for automatic."""
    tuner: Annotated[str, OneOf(TUNERS, "none")] | None = None
    """The policy that tunes workers and prefetch while the job runs; "none" disables tuning. None is "auto", unless
    `workers` is set."""
    memory: str | None = None
    """Memory budget for data in flight, such as "2GiB"; None for a share of the effective memory limit."""
    prefetch: int = Field(default=4, ge=0)
    """Batches prepared ahead of the training step."""


Device = Literal["cpu", "cuda"]


class TrainingConfig(Config):
    """How to train on each window."""

    batch_size: AskedBatchSize = "auto"
    """Rows per step; `auto` begins with 128 and goes to 1,024 as the log grows."""
    first_batch_size: int | None = Field(default=None, ge=1, le=LARGEST_BATCH)
    """Rows of the first steps with `batch_size: auto`; None for 128."""
    seed: int = 0
    """Seed of all initial values and hashes."""
    dense_optimizer: DenseOptimizerConfig = Adam()
    """Optimizer of all parameters except embeddings."""
    learning_rate_schedule: LearningRateScheduleConfig | None = None
    """Factor of the learning rates of dense parameters and embeddings, by rows trained on; None for constant rates."""
    clip_grad_norm: float | None = Field(default=None, gt=0)
    """Maximum gradient norm of the dense parameters; None for no clipping."""
    precision: AskedPrecision = "auto"
    """Precision of matrix products; parameters are always float32. `auto` measures once, and the run keeps the
    result."""
    device: Device = "cpu"
    """Device of the model: cpu or cuda. With cuda, `embeddings.memory` sets where rows live."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of the training step. The same number gives bit-identical parameters; None for the number of CPUs."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints inside a window; None for checkpoints only at the end of windows."""
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    """How checkpoints are written, and how many are kept."""
    publish: PublishConfig | None = None
    """Publish versions for servers while training, into the folder `publications` of the run; None for none."""
    log_every_steps: int = Field(default=20, ge=1)
    """Steps per line of metrics."""
    label_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Weights of labels in the loss, by name; labels left out have weight 1. Metrics are not weighted."""
    baseline: str | None = None
    """A dense feature, such as an item's clicks in the last hour, whose AUC is shown next to the model's."""
    row_ledger: bool = False
    """Record which rows each step trained on."""

    @model_validator(mode="after")
    def _only_growing_batches_have_a_first_size(self) -> Self:
        if self.first_batch_size is not None and self.batch_size != "auto":
            raise ValueError(f"first_batch_size is only for batch_size auto, given batch_size {self.batch_size}")
        return self


class ClusterConfig(Config):
    """Embeddings in separate processes; without `shards` they are in the trainer."""

    shards: tuple[str, ...] = ()
    """Addresses of the shards, as "host:port"; `headrace launch` sets them."""
    plan: PlanKind = "row_wise"
    """row_wise spreads every table over all shards; table_wise keeps a table in one shard if loads stay even."""
    traffic: dict[str, float] = Field(default_factory=dict)
    """Unique ids per batch of each table, for table_wise; by default the same for all."""
    rows: Precision = "fp32"
    """Precision of rows on the wire: fp32, bf16 (error 2^-8 of each number) or int8 (1/254 of the row's maximum)."""
    gradients: Precision = "fp32"
    """Precision of gradients on the wire."""
    staleness: Annotated[int | Literal["async"], whole_number_or("async", at_least=0)] = 0
    """Steps that a pull can miss: 0 is synchronous; "async" applies gradients as they arrive and never waits."""
    token_file: str | None = None
    """File with the shards' token; None for the environment variable HEADRACE_SHARD_TOKEN, if set."""
    tls_authority: str | None = None
    """PEM file of the authority that verifies shards' certificates; None for no TLS."""
    timeout_s: float = Field(default=150.0, gt=0)
    """Maximum seconds for a response from a shard, including its wait for other trainers."""
    wait_s: float = Field(default=600.0, ge=0)
    """Maximum seconds that trainers wait for a lost shard, or for each other."""

    @model_validator(mode="after")
    def _traffic_needs_a_plan_that_uses_it(self) -> Self:
        if self.traffic and self.plan != "table_wise":
            raise ValueError(f"traffic is only for plan table_wise, given plan {self.plan}")
        return self

    def security(self) -> ClientSecurity:
        """The token and the certificate authority, read from their files."""
        authority = None if self.tls_authority is None else Path(self.tls_authority)
        return ClientSecurity.of_files(read_token(self.token_file), authority)

    def options(self) -> GroupOptions:
        """The options of the shard client."""
        from headrace.embeddings.shards.group import GroupOptions
        from headrace.embeddings.stores.remote import StoreOptions  # loads Arrow Flight, which few jobs need

        staleness = None if self.staleness == "async" else self.staleness
        store = StoreOptions(self.rows, self.gradients, staleness)
        return GroupOptions(self.plan, store, self.security(), self.timeout_s)


class JobConfig(Config):
    """A job file.

    As YAML (every section except `run` and `data` is optional)::

        run: runs/news
        data: {path: logs/, window: {kind: folder}, bad_rows: {policy: quarantine}}
        features:
          dense: {clicks: [fill: 0, log1p]}
          sparse: {item: [], history: [first_x: 20]}
        embeddings: {default: {kind: collisionless}}
        model: {kind: dlrm, embedding_dim: 16}
        training: {batch_size: 1024}

    Attributes:
        run: Folder of the run; relative paths are relative to the job file's folder.
        data: The logs.
        pipeline: How batches are prepared.
        features: The feature plan, see `headrace.features`; by default it uses every column of the schema.
        embeddings: The embedding tables.
        model: The model.
        training: How to train it.
        scheduler: How the phases of a step overlap.
        placement: Where the rows of shards are while they are trained.
        cluster: The shards that hold the embeddings.
    """

    run: str
    data: DataConfig
    pipeline: PipelineConfig = PipelineConfig()
    features: dict[str, Any] | None = None
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    model: ModelConfig = DLRMConfig()
    training: TrainingConfig = TrainingConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    placement: PlacementConfig = PlacementConfig()
    cluster: ClusterConfig = ClusterConfig()

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a job file and its schema, and resolve relative paths.

        Raises:
            ConfigError: The file is invalid; names the file, the key, the given and the expected value.
        """
        return cls.from_dict(read_yaml(path), where=str(path)).resolve(Path(path).parent)

    def resolve(self, base: Path) -> Self:
        """Return a copy of the job with absolute paths and the schema loaded.

        Raises:
            ConfigError: A path is a URL where only local paths are allowed, the schema cannot be read, or the run or
                its quarantine would be inside the logs.
        """
        data = self.data.model_copy(update={"path": logs_location(self.data.path, where="data.path", base=base)})
        if not isinstance(data.columns, Schema):
            place = _absolute(data.columns, "data.schema", base) if data.columns else _schema_beside(data.path)
            data = data.model_copy(update={"columns": _read_schema(place, data.path)})
        if data.bad_rows.path is not None:
            quarantine = _absolute(data.bad_rows.path, "data.bad_rows.path", base)
            policy = data.bad_rows.model_copy(update={"path": quarantine})
            data = data.model_copy(update={"bad_rows": policy})
        run = _absolute(self.run, "run", base)
        check_output(run, data.path, what="run")
        if data.bad_rows.path is not None:
            check_output(data.bad_rows.path, data.path, what="data.bad_rows.path")
        files = {name: getattr(self.cluster, name) for name in ("token_file", "tls_authority")}
        found = {name: _absolute(path, f"cluster.{name}", base) for name, path in files.items() if path is not None}
        cluster = self.cluster.model_copy(update=found)
        embeddings = self.embeddings
        storage = embeddings.storage
        if storage.path is not None:
            folder = _absolute(storage.path, "embeddings.storage.path", base)
            embeddings = embeddings.model_copy(update={"storage": storage.model_copy(update={"path": folder})})
        found_here = {"run": run, "data": data, "embeddings": embeddings, "cluster": cluster}
        return self.model_copy(update=found_here)

    @property
    def schema_of_logs(self) -> Schema:
        """The schema, after `resolve` has loaded it."""
        assert isinstance(self.data.columns, Schema), "call resolve() first"
        return self.data.columns


def _absolute(path: str, where: str, base: Path) -> str:
    return str(local_path(path, where=where, base=base).resolve())


def _schema_beside(logs: str) -> str:
    place = schema_beside(logs)
    if place is None:
        raise ConfigError(f"data.schema: missing; logs at {logs} need a local schema file")
    return str(place)


def _read_schema(place: str, logs: str) -> Schema:
    if Path(place).is_file():
        return Schema.from_yaml(place)
    list_files(logs)  # raises if there are no logs
    raise ConfigError(
        f"data.schema: {printable(place)}: no such file; write one with: "
        f"headrace inspect {quote(printable(logs))} --write-schema {quote(printable(place))}"
    )
