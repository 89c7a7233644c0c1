"""How ids become rows and how rows learn: defaults, spaces and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from headrace.config import Config
from headrace.embeddings.optimizers import RowWiseAdagradConfig, SparseOptimizerConfig
from headrace.embeddings.storage.row_formats import RowFormat
from headrace.errors import ConfigError

__all__ = ["EmbeddingsConfig", "FeatureConfig", "FeatureLayout", "Pooling", "TableConfig"]

Pooling = Literal["sum", "mean", "max"]


class TableConfig(Config):
    """One id space: how ids map to rows, and how rows are initialized and trained."""

    kind: Literal["direct", "hashed", "collisionless"] = "hashed"
    """direct: ids are row numbers. hashed: ids share `num_embeddings` rows. collisionless: one row per id."""
    num_embeddings: int = Field(default=100_000, ge=1)
    """Number of rows; for a collisionless space, the initial capacity."""
    admission_count: int = Field(default=1, ge=0)
    """Collisionless only: an id gets a row at this occurrence; until then it reads zeros and is not trained. 0: every
    id has a row, so an id never trained on reads its random initial value."""
    evict_after: int | None = Field(default=None, ge=1)
    """Collisionless only: an id not seen for this many windows loses its row; None for never."""
    init_scale: float | None = Field(default=None, ge=0)
    """Initial values are uniform in [-init_scale, init_scale); None is 1 / sqrt(num_embeddings), as in DLRM's code."""
    rows: RowFormat = "fp32"
    """Storage dtype of rows: fp32, or bf16 or fp16 with stochastic rounding in half the memory; the same for all
    spaces."""
    optimizer: SparseOptimizerConfig = RowWiseAdagradConfig()
    """Optimizer of rows; one kind for all spaces, whose parameters can differ. Its state is always fp32."""

    @property
    def scale(self) -> float:
        """`init_scale`, or the default in its place."""
        return self.num_embeddings**-0.5 if self.init_scale is None else self.init_scale

    @model_validator(mode="after")
    def _only_collisionless_spaces_admit_and_evict(self) -> Self:
        if self.kind != "collisionless" and (self.admission_count > 1 or self.evict_after is not None):
            raise ValueError(f"admission_count and evict_after only with kind: collisionless, not {self.kind}")
        return self


class FeatureConfig(Config):
    """How one feature of the batch is looked up."""

    space: str | None = None
    """The id space; features that name the same space share rows. None is a space with the feature's name."""
    pooling: Pooling = "sum"
    """How the rows of an id list are combined; an empty list gives zeros. mean divides by the number of ids."""


@dataclass(frozen=True)
class FeatureLayout:
    """An `EmbeddingsConfig` for given features.

    Attributes:
        spaces: Name -> config, in the order in which features name them.
        space_of_feature: The number of each feature's space.
        poolings: Of each feature.
    """

    spaces: dict[str, TableConfig]
    space_of_feature: tuple[int, ...]
    poolings: tuple[Pooling, ...]


class EmbeddingsConfig(Config):
    """Defaults for all id spaces, settings of single spaces, and the space of each feature.

    As YAML::

        default: {kind: hashed, num_embeddings: 100000, optimizer: {kind: rowwise_adagrad, lr: 0.05}}
        spaces:
          items: {kind: collisionless, num_embeddings: 4096, admission_count: 2, evict_after: 24}
        features:
          candidate: {space: items}
          history: {space: items, pooling: mean}

    Attributes:
        default: Defaults for every space.
        spaces: Settings by space name; keys left out are inherited from `default`.
        features: Settings by feature name; a feature that is not listed has its own space and sum pooling.
        clip_grad_norm: Maximum gradient norm per step (L2 over all rows, duplicates merged); larger gradients are
            scaled down. None for no limit.
        memory: Where rows live if the model is on a GPU: in GPU memory, or in pinned host memory. No effect on a CPU.
    """

    default: TableConfig = TableConfig()
    spaces: dict[str, TableConfig] = Field(default_factory=dict)
    features: dict[str, FeatureConfig] = Field(default_factory=dict)
    clip_grad_norm: float | None = Field(default=None, gt=0)
    memory: Literal["device", "host"] = "device"

    @model_validator(mode="before")
    @classmethod
    def _spaces_inherit_from_the_default(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("spaces"), dict):
            return values
        default = _plain(values.get("default", {}))
        if not isinstance(default, dict):
            return values
        spaces = {
            name: _inherit(default, space) if isinstance(space, dict) else space
            for name, space in values["spaces"].items()
        }
        return values | {"spaces": spaces}

    @model_validator(mode="after")
    def _spaces_share_the_kind_of_optimizer_and_the_format_of_rows(self) -> Self:
        for name, space in self.spaces.items():
            if space.optimizer.kind != self.default.optimizer.kind:
                raise ValueError(
                    f"one kind of optimizer for all spaces: spaces.{name} has {space.optimizer.kind}, "
                    f"default has {self.default.optimizer.kind} (lr, eps and so on may differ)"
                )
            if space.rows != self.default.rows:
                raise ValueError(
                    f"one format of rows for all spaces: spaces.{name} has rows: {space.rows}, "
                    f"default has {self.default.rows}"
                )
        return self

    def layout(self, feature_names: Sequence[str]) -> FeatureLayout:
        """Spaces and pooling of the given features.

        Raises:
            ConfigError: `features` or `spaces` configures a name that nothing uses.
        """
        features = [self.features.get(name, FeatureConfig()) for name in feature_names]
        names = [feature.space or name for name, feature in zip(feature_names, features, strict=True)]
        spaces = {name: self.spaces.get(name, self.default) for name in names}
        for kind, given, known in (
            ("features", self.features, list(feature_names)),
            ("spaces", self.spaces, list(spaces)),
        ):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ConfigError(f"embeddings.{kind}.{unknown[0]}: unknown, expected one of: {', '.join(known)}")
        numbers = {name: number for number, name in enumerate(spaces)}
        return FeatureLayout(spaces, tuple(numbers[name] for name in names), tuple(f.pooling for f in features))

    def first_order(self) -> EmbeddingsConfig:
        """The same spaces for weights of one number per id, which begin at zero as a linear model's do."""
        zero = {"init_scale": 0.0}
        spaces = {name: space.model_copy(update=zero) for name, space in self.spaces.items()}
        return self.model_copy(update={"default": self.default.model_copy(update=zero), "spaces": spaces})


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Config) else value


def _inherit(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `default`, the optimizer key by key unless its kind changes; a kind that cannot admit or evict
    does not inherit that."""
    merged = default | given
    base = _plain(default.get("optimizer", RowWiseAdagradConfig()))
    own = _plain(given.get("optimizer"))
    if isinstance(base, dict) and isinstance(own, dict) and own.get("kind", base.get("kind")) == base.get("kind"):
        merged["optimizer"] = base | own
    if merged.get("kind", "hashed") != "collisionless":
        for key in ("admission_count", "evict_after"):
            if key not in given:
                merged.pop(key, None)
    return merged
