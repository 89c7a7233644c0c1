"""`ClusterConfig`: settings of `cluster_log`: layout, sessions, windows, sampling, memory."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from headrace.config import Config

__all__ = ["ClusterConfig"]


class ClusterConfig(Config):
    """How to cluster a log by session.

    Attributes:
        layout: "clustered": one row per impression, sessions adjacent. "nested": one row per session.
        session: Column with the session id; None for the schema's.
        user: Column with the user id, from which sessions are derived if there is no session column. Consecutive rows
            of a user belong to one session if they are at most `gap_s` apart.
        gap_s: Inactivity gap in seconds that starts a new session, see `user`.
        window: Boundaries that sessions never cross: "folder", "file", or "time" (slots of `every_s` seconds, inside
            each folder). Use the job's `window.kind`.
        every_s: Seconds per slot.
        sample: Fraction of sessions to keep, chosen by the hash of their id.
        seed: Seed of the sample.
        memory_bytes: Memory budget, excluding about 400 MB for Python with all libraries loaded.
        rows_per_group: Rows per row group; fewer if they would take more than an eighth of the memory. Sessions are
            split only if they are longer than `max_session_rows`.
        max_session_rows: Maximum rows of a session that are stored together; longer sessions continue in the next row.
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
            raise ValueError("every_s is required with window time, and only allowed there")
        if self.session is not None and self.user is not None:
            raise ValueError("give session or user, not both: sessions come from a column, or from gaps")
        return self
