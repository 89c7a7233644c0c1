"""The `embeddings.storage:` section of a job file."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from headrace.config import Config

__all__ = ["StorageConfig"]


class StorageConfig(Config):
    """Where rows are if they do not fit into memory. Results do not depend on it.

    As YAML, a kind without settings is just its name::

        storage: memory
        storage: {kind: mapped, path: /fast/ssd}
    """

    kind: Literal["memory", "mapped"] = "memory"
    """memory keeps all rows in memory. mapped keeps them in files that the operating system pages."""
    path: str | None = None
    """mapped only: an existing folder on a local SSD, for files that vanish with the process."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_a_kind(cls, values: Any) -> Any:
        return {"kind": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> Self:
        if self.kind == "memory" and self.path is not None:
            raise ValueError("path is for storage kind mapped, given kind memory")
        if self.kind != "memory" and self.path is None:
            raise ValueError(f"storage kind {self.kind} needs a path, such as /fast/ssd")
        return self
