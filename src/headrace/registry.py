"""Registries of everything that job files can refer to by name, one per key.

An entry is built in, registered by a program (`MODELS.register("mine", MyConfig)`), or referred to by import path:
`kind: my_package.my_models:MyConfig`. Built-in entries are imported on first use, so that this module can list entries
of all packages without circular imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, ClassVar, TypeVar

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.messages import shorten_list
from headrace.user_code import load_object

__all__ = [
    "DENSE_OPTIMIZERS",
    "LEARNING_RATE_SCHEDULES",
    "MODELS",
    "OPERATORS",
    "PLACEMENT_POLICIES",
    "RETENTION_POLICIES",
    "SPARSE_OPTIMIZERS",
    "STEP_POLICIES",
    "TUNERS",
    "NamedConfig",
    "OneOf",
    "Registry",
    "provider",
]

Thing = TypeVar("Thing")


class Registry(Mapping[str, Thing]):
    """The entries that one key of a job file can refer to."""

    def __init__(self, what: str, builtin: Mapping[str, str] | None = None) -> None:
        """Create a registry.

        Args:
            what: Kind of the entries, for error messages: "model".
            builtin: Import paths "module:attribute" of built-in entries, by name.
        """
        self.what = what
        self._entries: dict[str, Thing | str] = dict(builtin or {})

    def __iter__(self) -> Iterator[str]:
        """Iterate over names, built-in ones first."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Number of named entries."""
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        """Whether there is an entry with this name, without importing it."""
        return name in self._entries

    def register(self, name: str, thing: Thing) -> None:
        """Register an entry; repeating an identical registration is allowed.

        Raises:
            ConfigError: A different entry has that name, or the name contains a colon, which means an import path.
        """
        if ":" in name:
            raise ConfigError(f"{self.what}: given the name {name!r}, expected one without a colon")
        known = self[name] if name in self._entries else thing
        if known is not thing and _qualified(known) != _qualified(thing):
            raise ConfigError(f"{self.what} {name}: registered twice, as {_qualified(known)} and {_qualified(thing)}")
        self._entries[name] = thing

    def unregister(self, name: str) -> None:
        """Remove a registered entry.

        Raises:
            KeyError: There is no entry with that name.
        """
        del self._entries[name]

    def __getitem__(self, name: str) -> Thing:
        """Look up an entry.

        Raises:
            KeyError: There is no entry with that name.
        """
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = _load(entry)
        return entry

    def find(self, name: str, *, where: str) -> Thing:
        """Look up an entry by name, or import "package.module:name".

        Args:
            name: Name in the job file.
            where: Key in the job file, for error messages.

        Raises:
            ConfigError: There is no entry with that name, or it cannot be imported.
        """
        if ":" in name:
            thing: Thing = load_object(name, where=where)
            return thing
        if name not in self._entries:
            raise ConfigError(f"{where}: given {self.what} {name!r}, expected {self.expected(name)}")
        return self[name]

    def expected(self, given: object) -> str:
        """The expected values, for the error about an unknown name."""
        near = get_close_matches(str(given), list(self), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"one of {shorten_list([*self, 'package.module:name'])}{hint}"


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _qualified(thing: object) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing)}"


PROVIDERS = {"tuner": "headrace.tuning.opening:open_tuner"}
"""Implementations from higher-level packages, as "module:attribute"; lower-level packages declare protocols for
them."""


def provider(name: str) -> Any:
    """Import an object of `PROVIDERS` by name."""
    return _load(PROVIDERS[name])


MODELS: Registry[Any] = Registry(
    "model",
    {
        "dlrm": "headrace.models.dlrm:DLRMConfig",
        "dcnv2": "headrace.models.dcnv2:DCNv2Config",
        "deepfm": "headrace.models.deepfm:DeepFMConfig",
        "wide_deep": "headrace.models.wide_deep:WideDeepConfig",
        "din": "headrace.models.din:DINConfig",
    },
)
"""Entries of `model.kind`: subclasses of `headrace.models.ModelConfig`."""

DENSE_OPTIMIZERS: Registry[Any] = Registry(
    "optimizer",
    {
        "adam": "headrace.training.dense_optimizer:Adam",
        "sgd": "headrace.training.dense_optimizer:SGD",
        "adagrad": "headrace.training.dense_optimizer:Adagrad",
    },
)
"""Entries of `training.dense_optimizer.kind`: subclasses of `headrace.training.DenseOptimizerConfig`."""

LEARNING_RATE_SCHEDULES: Registry[Any] = Registry(
    "schedule",
    {
        "constant": "headrace.training.learning_rate:Constant",
        "inverse_square_root": "headrace.training.learning_rate:InverseSquareRoot",
        "step_decay": "headrace.training.learning_rate:StepDecay",
        "cosine": "headrace.training.learning_rate:Cosine",
    },
)
"""Entries of `training.learning_rate_schedule.kind`: subclasses of
`headrace.training.LearningRateScheduleConfig`."""

SPARSE_OPTIMIZERS: Registry[Any] = Registry(
    "optimizer",
    {
        "rowwise_adagrad": "headrace.embeddings.optimizers.rowwise_adagrad:RowWiseAdagradConfig",
        "adagrad": "headrace.embeddings.optimizers.adagrad:AdagradConfig",
        "adam": "headrace.embeddings.optimizers.adam:AdamConfig",
        "sgd": "headrace.embeddings.optimizers.sgd:SGDConfig",
        "ftrl": "headrace.embeddings.optimizers.ftrl:FTRLConfig",
    },
)
"""Entries of `embeddings.default.optimizer.kind`: subclasses of `headrace.embeddings.SparseOptimizerConfig`."""

STEP_POLICIES: Registry[Any] = Registry(
    "policy",
    {
        "serial": "headrace.scheduling.policies:SERIAL",
        "batch_prefetch": "headrace.scheduling.policies:BATCH_PREFETCH",
        "intra": "headrace.scheduling.policies:INTRA",
        "inter": "headrace.scheduling.policies:INTER",
        "recs": "headrace.scheduling.policies:RECS",
        "recs_early": "headrace.scheduling.policies:RECS_EARLY",
    },
)
"""Entries of `scheduler.policy`: implementations of `headrace.scheduling.Policy`."""

OPERATORS: Registry[Any] = Registry("operator")
"""Entries of `features`: subclasses of `headrace.features.Operator`; built-in ones are registered where they are
defined."""

PLACEMENT_POLICIES: Registry[Any] = Registry(
    "policy",
    {
        "none": "headrace.placement.replay.policies.none:NoCache",
        "lru": "headrace.placement.replay.policies.lru:LRU",
        "belady": "headrace.placement.replay.policies.belady:Belady",
        "bagpipe": "headrace.placement.replay.policies.bagpipe:Bagpipe",
        "herald": "headrace.placement.replay.policies.herald:Herald",
        "fae": "headrace.placement.replay.policies.fae:FAE",
        "het_0": "headrace.placement.replay.policies.het:HET0",
        "het_5": "headrace.placement.replay.policies.het:HET5",
        "het_100": "headrace.placement.replay.policies.het:HET100",
        "het_gmp": "headrace.placement.replay.policies.het_gmp:HETGMP",
        "fec": "headrace.placement.replay.policies.fec:FEC",
        "hotline": "headrace.placement.replay.policies.hotline:Hotline",
        "lookahead": "headrace.placement.replay.policies.lookahead:Lookahead",
        "lookahead_placed": "headrace.placement.replay.policies.lookahead:PlacedLookahead",
    },
)
"""Policies of `headrace placement`: subclasses of `headrace.placement.replay.PlacementPolicy`."""

RETENTION_POLICIES: Registry[Any] = Registry(
    "policy",
    {
        "importance": "headrace.embeddings.tables.lifecycle.importance:ImportanceConfig",
        "adaembed": "headrace.embeddings.tables.lifecycle.adaembed:AdaEmbedConfig",
        "cafe": "headrace.embeddings.tables.lifecycle.cafe:CafeConfig",
        "frequency": "headrace.embeddings.tables.lifecycle.frequency:FrequencyConfig",
        "hash": "headrace.embeddings.tables.lifecycle.hash:HashConfig",
        "qr": "headrace.embeddings.tables.lifecycle.qr:QRConfig",
    },
)
"""Entries of `embeddings.retention.kind`: subclasses of `headrace.embeddings.RetentionConfig`."""

TUNERS: Registry[Any] = Registry(
    "tuner",
    {
        "auto": "headrace.tuning.policies.auto:Auto",
        "one_per_stage": "headrace.tuning.policies.one_per_stage:OnePerStage",
        "even": "headrace.tuning.policies.even:EvenSplit",
        "autotune": "headrace.tuning.policies.autotune:Autotune",
        "autotune_hill_climb": "headrace.tuning.policies.autotune:hill_climbing",
        "autotune_adaptive": "headrace.tuning.policies.autotune:adaptive",
        "plumber": "headrace.tuning.policies.plumber:Plumber",
        "plumber_adaptive": "headrace.tuning.policies.plumber:adaptive",
        "intune": "headrace.tuning.policies.intune:InTune",
        "intune_published": "headrace.tuning.policies.intune:published",
    },
)
"""Entries of `pipeline.tuner`: factories of policies without arguments. The oracle is not listed, because it needs the
true pipeline."""


class OneOf:
    """Annotation for string fields with the name of a registry entry: `Annotated[str, OneOf(TUNERS, "none")]`."""

    def __init__(self, registry: Registry[Any], *others: str) -> None:
        """Allow entries of `registry`, and the special names `others`."""
        self.registry, self.others = registry, others

    def names(self) -> list[str]:
        """The allowed names, without import paths."""
        return [*self.others, *self.registry]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of a validated string."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        if name not in self.others:
            _found(self.registry, name)
        return name


class NamedConfig(Config):
    """A config with several kinds, selected by `kind`, the name of a registry entry.

    A base class such as `ModelConfig` sets `registry`. A field of that type accepts a mapping with any `kind`. Your own
    kind is a subclass that does not override `kind`.
    """

    registry: ClassVar[Registry[Any]]

    kind: str
    """Which one: a name, or package.module:name for your own."""

    @classmethod
    def variant(cls, kind: object) -> type[Config] | None:
        """The config class of a kind; None if this is not a base class or the kind does not exist."""
        if "registry" not in cls.__dict__ or not isinstance(kind, str):
            return None
        try:
            found = cls.registry.find(kind, where="kind")
        except ConfigError:
            return None
        return found if isinstance(found, type) and issubclass(found, cls) else None

    @classmethod
    def variants(cls) -> list[type[Config]]:
        """The named config classes; empty unless this is a base class."""
        return [cls.registry[name] for name in cls.registry] if "registry" in cls.__dict__ else []

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of a base class accepts any of its kinds."""
        if "registry" in cls.__dict__:
            return core_schema.no_info_plain_validator_function(cls._of_any_kind)
        return handler(source)

    @classmethod
    def _of_any_kind(cls, value: Any) -> NamedConfig:
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("mapping", "a mapping with `kind`")
        if "kind" not in value:
            raise _nested(cls, [("missing", "missing", ("kind",), value)])
        kind = value["kind"]
        try:
            found = _found(cls.registry, kind)
        except PydanticCustomError as error:
            raise _nested(cls, [(error.type, error.message(), ("kind",), kind)]) from None
        if not isinstance(found, type) or not issubclass(found, cls):
            raise _nested(cls, [("base", f"a subclass of {_qualified(cls)}", ("kind",), kind)])
        try:
            return found.model_validate(value)
        except ValidationError as error:
            details = error.errors(include_url=False)
            raise _nested(cls, [(d["type"], d["msg"], (kind, *d["loc"]), d["input"]) for d in details]) from None


def _found(registry: Registry[Any], name: object) -> Any:
    if not isinstance(name, str) or (":" not in name and name not in registry):
        raise PydanticCustomError("unknown_name", "{text}", {"text": registry.expected(name)})
    try:
        return registry.find(name, where=registry.what)
    except ConfigError as error:
        raise PydanticCustomError("import", "{text}", {"text": str(error)}) from error


def _nested(cls: type, found: list[tuple[str, str, tuple[int | str, ...], Any]]) -> ValidationError:
    """Make a pydantic error from findings (type, message, location, input)."""
    lines = [
        InitErrorDetails(type=PydanticCustomError(kind, "{text}", {"text": text}), loc=loc, input=given)
        for kind, text, loc, given in found
    ]
    return ValidationError.from_exception_data(cls.__name__, lines)
