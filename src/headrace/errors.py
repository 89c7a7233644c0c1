"""The errors a caller may want to catch.

HeadraceError
├── ConfigError          a job file, schema or argument is wrong (also a ValueError)
├── DataError            the logs are not what the schema says (also a ValueError)
│   └── ErrorBudgetExceeded   more bad rows than the job allows
├── PipelineError        a stage failed; names the stage, file, row group and rows
├── CheckpointError      a checkpoint cannot be used
│   ├── TornCheckpoint        files are missing or do not match their checksums
│   └── VersionMismatch       written by a format this version does not read
├── StorageError         a file cannot be written
├── ShardError           a shard refused a request
│   └── ShardLost             a shard is gone, or has forgotten this training; names it
└── MissingExtra         an optional dependency is not installed (also an ImportError)
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ErrorBudgetExceeded",
    "HeadraceError",
    "MissingExtra",
    "PipelineError",
    "ShardError",
    "ShardLost",
    "StorageError",
    "TornCheckpoint",
    "VersionMismatch",
    "expect",
]


class HeadraceError(Exception):
    """Base of every error headrace raises on purpose; its text is one clear line."""


class ConfigError(HeadraceError, ValueError):
    """A job file, schema or argument is wrong: names the key, what was given and what was expected."""


class DataError(HeadraceError, ValueError):
    """The logs are not what the schema says: names file, row group, row, column and reason."""


class ErrorBudgetExceeded(DataError):
    """More rows were bad than the job's error budget allows."""


class PipelineError(HeadraceError):
    """A pipeline stage failed: names the stage and the rows it was working on."""


class CheckpointError(HeadraceError):
    """A checkpoint cannot be written or used."""


class TornCheckpoint(CheckpointError):
    """A checkpoint's files are missing or do not match the checksums in its manifest."""


class VersionMismatch(CheckpointError):
    """Saved state has a version this code does not read; both versions are in the text."""


class StorageError(HeadraceError):
    """A file cannot be written: names it and the system's reason, such as a full disk."""


class ShardError(HeadraceError):
    """A shard of the embeddings refused a request, and is still serving."""


class ShardLost(ShardError):
    """A shard cannot be reached, or has forgotten this training; what lies behind the newest checkpoint is lost."""


class MissingExtra(HeadraceError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'headrace[{extra}]'")


def expect(value: object, kinds: type | tuple[type, ...], *, where: str, expected: str) -> None:
    """Refuse an argument of another type, before it fails somewhere inside.

    Args:
        value: What was given.
        kinds: Types that it may have.
        where: Function and argument.
        expected: What they are, in words.

    Raises:
        ConfigError: It has none of the types.
    """
    if not isinstance(value, kinds):
        raise ConfigError(f"{where}: given {type(value).__name__}, expected {expected}")
