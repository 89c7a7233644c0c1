"""What `cluster_log` may be told: layout, what a session is, windows, sampling, memory."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from headrace.config import Config

__all__ = ["ClusterConfig"]


class ClusterConfig(Config):
    """How to cluster a log by session.

    Attributes:
        layout: "clustered": one row an impression, sessions adjacent. "nested": one row a session.
        session: Column that names the session; None for the schema's.
        user: Without a session column: column that names the user, whose rows make a session as long as no two that
            follow each other are more than `gap_s` apart.
        gap_s: Seconds, see `user`.
        window: Borders that no session is moved across: "folder", "file", or "time" (slots of `every_s` seconds, inside
            each folder). Use what the job's `window.kind` says.
        every_s: Seconds of a slot.
        sample: Share of the sessions to keep; whole sessions, drawn by the hash of their name.
        seed: Of the sample.
        memory_bytes: What the work may take, beside the 400 MB of an interpreter with all libraries loaded.
        rows_per_group: Rows of a row group, fewer where they would take more than an eighth of the memory; sessions
            are not cut unless they are longer than `max_session_rows`.
        max_session_rows: Rows of a session that are stored together; longer ones are continued in the next row.
    """

    layout: Literal["clustered", "nested"] = "nested"
    session: str | None = None
    user: str | None = None
    gap_s: float = Field(default=1800.0, gt=0)
    window: Literal["folder", "file", "time"] = "folder"
    every_s: int | None = Field(default=None, ge=1)
    sample: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    memory_bytes: int = Field(default=2 << 30, ge=64 << 20)
    rows_per_group: int = Field(default=65_536, ge=1)
    max_session_rows: int = Field(default=4096, ge=1)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if (self.window == "time") != (self.every_s is not None):
            raise ValueError("window time needs every_s, and only window time takes it")
        if self.session is not None and self.user is not None:
            raise ValueError("session and user exclude each other: a session is named by its column, or found by gaps")
        return self
