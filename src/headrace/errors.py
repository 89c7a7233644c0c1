"""The errors that a caller may want to catch.

HeadraceError
├── ConfigError          a job file, schema or argument is invalid (also a ValueError)
├── DataError            the logs violate the schema or are damaged (also a ValueError)
│   └── ErrorBudgetExceeded   more bad rows than the job allows
├── PipelineError        a stage failed; names the stage, file, row group and rows
├── CheckpointError      a checkpoint cannot be used
│   ├── TornCheckpoint        files are missing or do not match their checksums
│   └── VersionMismatch       written by a format this version does not read
├── StorageError         a file cannot be written
├── ShardError           a shard refused a request
│   └── ShardLost             a shard is gone, or has forgotten this training; names it
├── PublishingError      a server of publications refused a request, or cannot be reached
│   └── VersionGone           a version of the model is not, or no longer, in memory
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
    "PublishingError",
    "ShardError",
    "ShardLost",
    "StorageError",
    "TornCheckpoint",
    "VersionGone",
    "VersionMismatch",
    "expect",
]


class HeadraceError(Exception):
    """Base of all errors that headrace raises deliberately; the message is one line."""


class ConfigError(HeadraceError, ValueError):
    """A job file, schema or argument is invalid; names the key, the given and the expected value."""


class DataError(HeadraceError, ValueError):
    """The logs violate the schema or are damaged; names file, row group, row, column and reason."""


class ErrorBudgetExceeded(DataError):
    """More rows are bad than the job's error budget allows."""


class PipelineError(HeadraceError):
    """A pipeline stage failed; names the stage and the rows it was processing."""


class PublishingError(HeadraceError):
    """A server of publications refused a request, or cannot be reached; names it."""


class VersionGone(PublishingError):
    """A version of the model is not in memory, or no longer; ask again for the newest one."""


class CheckpointError(HeadraceError):
    """A checkpoint cannot be written or used."""


class TornCheckpoint(CheckpointError):
    """A checkpoint's files are missing or do not match the checksums in its manifest."""


class VersionMismatch(CheckpointError):
    """Saved state has a version that this code does not support; the message has both versions."""


class StorageError(HeadraceError):
    """A file cannot be written; names the file and the system's reason, such as a full disk."""


class ShardError(HeadraceError):
    """A shard refused a request; it is still running."""


class ShardLost(ShardError):
    """A shard cannot be reached, or has lost this session; steps after the newest checkpoint are lost."""


class MissingExtra(HeadraceError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'headrace[{extra}]'")


def expect(value: object, kinds: type | tuple[type, ...], *, where: str, expected: str) -> None:
    """Check the type of an argument.

    Args:
        value: The argument.
        kinds: Allowed types.
        where: Names of function and argument.
        expected: The allowed types, in words.

    Raises:
        ConfigError: The argument has none of the types.
    """
    if not isinstance(value, kinds):
        raise ConfigError(f"{where}: given {type(value).__name__}, expected {expected}")
