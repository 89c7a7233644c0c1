"""Configuration of embedding tables: a config per table, and defaults for all."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from headrace.config import Config
from headrace.embeddings.budget import RetentionConfig, parse_budget
from headrace.embeddings.optimizers import RowWiseAdagradConfig, SparseOptimizerConfig
from headrace.embeddings.storage.config import StorageConfig
from headrace.embeddings.storage.row_formats import RowFormat
from headrace.errors import ConfigError

__all__ = ["EmbeddingsConfig", "Pooling", "TableConfig", "dim_of_tables", "names_of_tables"]

Pooling = Literal["sum", "mean", "max"]


class TableConfig(Config):
    """One embedding table: its features, how ids map to rows, and how rows are initialized and trained.

    As TorchRec's `EmbeddingBagConfig`::

        TableConfig(name="items", num_embeddings=4096, embedding_dim=16, feature_names=("candidate", "history"))
    """

    name: str = ""
    """Name of the table. In a job file, the key under `tables` is the name."""
    embedding_dim: int | None = Field(default=None, ge=1)
    """Dimension of rows; None for the model's."""
    feature_names: tuple[str, ...] = ()
    """Features that use the table and share its rows. A feature that no table lists gets its own table."""
    pooling: Pooling | dict[str, Pooling] = "sum"
    """How the rows of an id list are combined, for all features or by feature name (others: sum). An empty list gives
    zeros. mean divides by the number of ids."""
    kind: Literal["direct", "hashed", "collisionless"] = "hashed"
    """direct: ids are row numbers. hashed: ids share `num_embeddings` rows. collisionless: one row per id."""
    num_embeddings: int = Field(default=100_000, ge=1)
    """Number of rows; for a collisionless table, the initial capacity."""
    admission_count: int = Field(default=1, ge=0, le=2_000_000_000)
    """Collisionless only: an id gets a row at this occurrence; until then it reads zeros and is not trained. 0: every
    id has a row, so an id never trained on reads its random initial value."""
    evict_after: int | None = Field(default=None, ge=1)
    """Collisionless only: an id not seen for this many windows loses its row; None for never."""
    init_scale: float | None = Field(default=None, ge=0)
    """Initial values are uniform in [-init_scale, init_scale); None is 1 / sqrt(num_embeddings), as in DLRM's code."""
    rows: RowFormat = "fp32"
    """Storage dtype of rows: fp32, or with stochastic rounding bf16 or fp16 in half the memory or int8 in about a
    quarter, with a scale per row; the same for all tables."""
    optimizer: SparseOptimizerConfig = RowWiseAdagradConfig()
    """Optimizer of rows; one kind for all tables, whose parameters can differ. Its state is always fp32."""

    def pooling_of(self, feature_name: str) -> Pooling:
        """Pooling of a feature of this table."""
        return self.pooling.get(feature_name, "sum") if isinstance(self.pooling, dict) else self.pooling

    @property
    def scale(self) -> float:
        """`init_scale`, or its default value."""
        return self.num_embeddings**-0.5 if self.init_scale is None else self.init_scale

    @model_validator(mode="after")
    def _only_collisionless_tables_admit_and_evict(self) -> Self:
        if self.kind != "collisionless" and (self.admission_count > 1 or self.evict_after is not None):
            raise ValueError(f"admission_count and evict_after need kind: collisionless, given {self.kind}")
        return self


def names_of_tables(tables: Sequence[TableConfig]) -> list[str]:
    """Names of the tables in a group.

    Raises:
        ConfigError: There are no tables, one has no name, or two have the same name.
    """
    names = [table.name for table in tables]
    if not names:
        raise ConfigError("tables: given none, expected at least one")
    if "" in names:
        raise ConfigError(f"tables: number {names.index('')} has no name, expected a name for each")
    (name, count), *_ = Counter(names).most_common(1)
    if count > 1:
        raise ConfigError(f"tables: {name!r} occurs {count} times, expected different names")
    return names


def dim_of_tables(tables: Sequence[TableConfig]) -> int:
    """The common dimension of the tables in a group.

    Raises:
        ConfigError: As for `names_of_tables`, or dimensions are missing or differ.
    """
    names_of_tables(tables)
    dim = tables[0].embedding_dim
    for table in tables:
        if dim is None or table.embedding_dim != dim:
            wanted = "a number" if dim is None else f"{dim}, as in table {tables[0].name}"
            raise ConfigError(f"tables.{table.name}.embedding_dim: given {table.embedding_dim}, expected {wanted}")
    assert dim is not None
    return dim


class EmbeddingsConfig(Config):
    """Defaults for all tables, and settings of single tables.

    As YAML::

        default: {kind: hashed, num_embeddings: 100000, optimizer: {kind: rowwise_adagrad, lr: 0.05}}
        tables:
          items:
            feature_names: [candidate, history]
            pooling: {history: mean}
            kind: collisionless
            num_embeddings: 4096
            admission_count: 2

    Attributes:
        default: Defaults for every table.
        tables: Settings by table name; keys left out are inherited from `default`.
        linear_optimizer: Optimizer of the weights of linear models, one per id; None for that of each table.
        clip_grad_norm: Maximum gradient norm per step (L2 over all rows, duplicates merged); larger gradients are
            scaled down. None for no limit.
        budget: Maximum bytes of the tables of a dimension, with optimizer state, metadata and index: a size ("2GiB"),
            or a part ("40%") of what `num_embeddings` rows of each table take. None for no limit.
        retention: With a budget, which ids have rows; None for `importance`.
        partitions: With a budget, number of parts into which ids are divided by a hash. Each has its part of the budget
            and shared rows of its own, so results depend on it, but not on the number of shards, which is at most as
            large. None for that of the checkpoint, or else one per shard, or one without shards.
        memory: Where rows live if the model is on a GPU: in GPU memory, or in pinned host memory. No effect on a CPU.
        storage: Where rows live if they do not fit into memory.
    """

    default: TableConfig = TableConfig()
    tables: dict[str, TableConfig] = Field(default_factory=dict)
    linear_optimizer: SparseOptimizerConfig | None = None
    clip_grad_norm: float | None = Field(default=None, gt=0)
    budget: str | None = None
    retention: RetentionConfig | None = None
    partitions: int | None = Field(default=None, ge=1, le=4096)
    memory: Literal["device", "host"] = "device"
    storage: StorageConfig = StorageConfig()

    @field_validator("budget", mode="before")
    @classmethod
    def _bytes_are_a_size(cls, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError('a percentage such as "40%" or a size such as "2GiB"')
        return str(value)

    @model_validator(mode="before")
    @classmethod
    def _tables_inherit_from_the_default(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = _from_spaces_and_features(values)
        default = _plain(values.get("default", {}))
        if not isinstance(values.get("tables"), dict) or not isinstance(default, dict):
            return values
        tables = {
            name: _inherit(default, table) if isinstance(table, dict) else table
            for name, table in values["tables"].items()
        }
        return values | {"tables": tables}

    @model_validator(mode="after")
    def _tables_share_the_kind_of_optimizer_and_the_storage_dtype(self) -> Self:
        for name, table in self.tables.items():
            if table.optimizer.kind != self.default.optimizer.kind:
                raise ValueError(
                    f"one kind of optimizer for all tables: tables.{name} has {table.optimizer.kind}, "
                    f"default has {self.default.optimizer.kind} (lr, eps and so on may differ)"
                )
            if table.rows != self.default.rows:
                raise ValueError(
                    f"one storage dtype for all tables: tables.{name} has rows: {table.rows}, "
                    f"default has {self.default.rows}"
                )
        return self

    @model_validator(mode="after")
    def _a_budget_decides_who_has_rows(self) -> Self:
        if self.budget is None:
            if self.retention is not None:
                raise ValueError(f"retention: given {self.retention.kind} without a budget, expected `budget` as well")
            if self.partitions is not None:
                raise ValueError(f"partitions: given {self.partitions} without a budget, expected `budget` as well")
            return self
        parse_budget(self.budget, 1 << 40, where="budget")
        for name, table in {"default": self.default, **self.tables}.items():
            if table.admission_count > 1:
                raise ValueError(
                    f"{name}: given admission_count {table.admission_count} with a budget, expected none: "
                    "ids get rows by their importance"
                )
        return self

    @model_validator(mode="after")
    def _a_feature_is_in_one_table(self) -> Self:
        if self.default.feature_names:
            raise ValueError(f"default.feature_names: given {self.default.feature_names[0]}, expected only in tables")
        table_of: dict[str, str] = {}
        for name, table in self.tables.items():
            for feature in table.feature_names:
                if table_of.setdefault(feature, name) != name:
                    raise ValueError(f"tables.{name}.feature_names: {feature} is in tables.{table_of[feature]} already")
        return self

    def tables_of(self, feature_names: Sequence[str], embedding_dim: int | None = None) -> tuple[TableConfig, ...]:
        """The tables of some features, each with its name, dimension and features, in the order of the features.

        Args:
            feature_names: Features of a model.
            embedding_dim: Dimension of the model's rows; None to keep each table's own.

        Raises:
            ConfigError: `tables` configures a table that no feature uses, or a different dimension.
        """
        table_of = {feature: name for name, table in self.tables.items() for feature in table.feature_names}
        used: dict[str, list[str]] = {}
        for feature in feature_names:
            used.setdefault(table_of.get(feature, feature), []).append(feature)
        _refuse_unknown("tables", self.tables, used)
        for name, table in self.tables.items():
            _refuse_unknown(f"tables.{name}.feature_names", table.feature_names, feature_names)
            _refuse_unknown(
                f"tables.{name}.pooling", [] if isinstance(table.pooling, str) else table.pooling, used[name]
            )
            if embedding_dim is not None and table.embedding_dim not in (None, embedding_dim):
                raise ConfigError(
                    f"embeddings.tables.{name}.embedding_dim: given {table.embedding_dim}, expected {embedding_dim}, "
                    "the model's"
                )
        return tuple(
            self.tables.get(name, self.default).model_copy(
                update={"name": name, "feature_names": tuple(features)}
                | ({} if embedding_dim is None else {"embedding_dim": embedding_dim})
            )
            for name, features in used.items()
        )

    def first_order(self) -> EmbeddingsConfig:
        """The same tables with dimension 1, zero initial values and `linear_optimizer`, for the weights of a linear
        model."""
        zero: dict[str, Any] = {"init_scale": 0.0, "embedding_dim": None}
        if self.linear_optimizer is not None:
            zero["optimizer"] = self.linear_optimizer
        tables = {name: table.model_copy(update=zero) for name, table in self.tables.items()}
        return self.model_copy(update={"default": self.default.model_copy(update=zero), "tables": tables})


def _refuse_unknown(key: str, given: Iterable[str], known: Iterable[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"embeddings.{key}.{unknown[0]}: unknown, expected one of: {', '.join(known)}")


def _from_spaces_and_features(values: dict[str, Any]) -> dict[str, Any]:
    """Accepts the deprecated keys `spaces` and `features`, which `tables` replaces, until the next version."""
    spaces, features = values.get("spaces", {}), values.get("features", {})
    parts = (spaces, features, *(features.values() if isinstance(features, dict) else ()))
    if not {"spaces", "features"} & values.keys() or "tables" in values or not all(isinstance(p, dict) for p in parts):
        return values
    warnings.warn(
        "embeddings.spaces and embeddings.features are deprecated; use embeddings.tables (feature_names, pooling)",
        FutureWarning,
        stacklevel=2,
    )
    tables: dict[str, Any] = {name: _plain(space) for name, space in spaces.items()}
    for feature, config in features.items():
        table = tables.setdefault(config.get("space") or feature, {})
        table = tables[config.get("space") or feature] = {**table}
        if config.get("space"):
            table["feature_names"] = [*table.get("feature_names", ()), feature]
        if "pooling" in config:
            table["pooling"] = {**table.get("pooling", {}), feature: config["pooling"]}
    return {key: value for key, value in values.items() if key not in ("spaces", "features")} | {"tables": tables}


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Config) else value


def _inherit(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `default`, the optimizer key by key unless its kind changes; a kind that cannot admit or evict
    does not inherit that."""
    merged = {key: value for key, value in default.items() if key not in ("name", "feature_names")} | given
    base = _plain(default.get("optimizer", RowWiseAdagradConfig()))
    own = _plain(given.get("optimizer"))
    if isinstance(base, dict) and isinstance(own, dict) and own.get("kind", base.get("kind")) == base.get("kind"):
        merged["optimizer"] = base | own
    if merged.get("kind", "hashed") != "collisionless":
        for key in ("admission_count", "evict_after"):
            if key not in given:
                merged.pop(key, None)
    return merged
