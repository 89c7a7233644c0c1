"""The `embeddings.storage:` section of a job file."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from headrace.config import Config
from headrace.resources.quantities import parse_bytes

__all__ = ["StorageConfig"]


class StorageConfig(Config):
    """Where rows are if they do not fit into memory. Results do not depend on it.

    As YAML, a kind without settings is just its name::

        storage: memory
        storage: {kind: mapped, path: /fast/ssd}
        storage: {kind: tiered, memory: 2GiB, path: /fast/ssd}
    """

    kind: Literal["memory", "mapped", "tiered"] = "memory"
    """memory keeps all rows in memory. mapped keeps them in a file that the operating system pages. tiered keeps the
    rows in use in memory, the others in a file, and reads rows before their batch is trained."""
    memory: str | None = None
    """tiered only: memory for rows and their optimizer state, such as "2GiB", per table group. The index of ids and the
    metadata of all rows come on top; see docs/storage.md."""
    path: str | None = None
    """mapped and tiered: an existing folder on a local SSD, for files that vanish with the process."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_a_kind(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value, where="embeddings.storage.memory")
        return value

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> Self:
        if self.kind == "memory" and self.path is not None:
            raise ValueError("path is for storage kind mapped or tiered, given kind memory")
        if self.kind != "memory" and self.path is None:
            raise ValueError(f"storage kind {self.kind} needs a path, such as /fast/ssd")
        if self.kind != "tiered" and self.memory is not None:
            raise ValueError(f"memory is for storage kind tiered, given kind {self.kind}")
        if self.kind == "tiered" and self.memory is None:
            raise ValueError("storage kind tiered needs memory, such as 2GiB")
        return self

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes; 0 if not set."""
        return 0 if self.memory is None else parse_bytes(self.memory)
