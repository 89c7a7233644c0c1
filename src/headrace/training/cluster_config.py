"""`ClusterConfig`: the part of a job file that says which shards hold the embeddings, and how to speak to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from headrace.config import Config
from headrace.embeddings.shards.plan import PlanKind
from headrace.embeddings.shards.precision import Precision
from headrace.embeddings.shards.security import ClientSecurity, read_token

if TYPE_CHECKING:
    from headrace.embeddings.shards.group import GroupOptions

__all__ = ["ClusterConfig"]


class ClusterConfig(Config):
    """Embeddings in other processes; without `shards` they are in the trainer."""

    shards: tuple[str, ...] = ()
    """Address of each shard, "host:port"; `headrace launch` fills them in."""
    plan: PlanKind = "row_wise"
    """row_wise spreads every id space over all shards; table_wise keeps spaces together where loads stay even."""
    traffic: dict[str, float] = Field(default_factory=dict)
    """Unique ids per batch by space, for table_wise; empty: the same for all."""
    rows: Precision = "fp32"
    """How rows travel: fp32, bf16 (error 2^-8 of each number) or int8 (1/254 of the greatest of its row)."""
    gradients: Precision = "fp32"
    """How gradients travel."""
    staleness: int | Literal["async"] = Field(default=0, ge=0)
    """Steps that a pull may miss: 0 is synchronous; "async" applies gradients as they come, and never waits."""
    token_file: str | None = None
    """Holds the shards' token; None for the variable HEADRACE_SHARD_TOKEN, if it is set."""
    tls_authority: str | None = None
    """PEM file of the certificate that shards' certificates are checked against; None for no TLS."""
    timeout_s: float = Field(default=150.0, gt=0)
    """How long a shard may take for one answer, waiting for other trainers included."""
    wait_s: float = Field(default=600.0, ge=0)
    """How long trainers wait for a lost shard, or for each other, before they give up."""

    def security(self) -> ClientSecurity:
        """Token and authority, read from their files."""
        authority = None if self.tls_authority is None else Path(self.tls_authority).read_bytes()
        return ClientSecurity(read_token(self.token_file), authority)

    def options(self) -> GroupOptions:
        """As the client takes them."""
        from headrace.embeddings.shards.group import GroupOptions
        from headrace.embeddings.stores.remote import StoreOptions  # Arrow Flight, which few jobs need

        staleness = None if self.staleness == "async" else self.staleness
        store = StoreOptions(self.rows, self.gradients, staleness)
        return GroupOptions(self.plan, store, self.security(), self.timeout_s)
