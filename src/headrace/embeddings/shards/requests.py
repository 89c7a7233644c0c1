"""Request bodies of a shard's actions, parsed into checked types with bounds on every number."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.embeddings.changes.chains import SEGMENT_NAME
from headrace.embeddings.config import TableConfig
from headrace.embeddings.shards.budgets import read_budget
from headrace.embeddings.shards.plan import ROW_WISE, ShardingPlan
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.errors import ConfigError, ShardError

__all__ = [
    "MAX_LINE",
    "MAX_STEP",
    "MAX_TABLES",
    "MAX_TRAINERS",
    "PROTOCOL",
    "AcknowledgeRequest",
    "ChangesRequest",
    "Consumer",
    "EndWindowRequest",
    "Name",
    "OpenRequest",
    "RecordChangesRequest",
    "SaveRequest",
    "SeenKeysRequest",
    "Step",
    "TakeDeltasRequest",
    "Ticket",
    "Trainer",
    "WriteDeltasRequest",
    "check_protocol",
    "parse",
]

PROTOCOL = 9
"""Protocol version of streams and of `open`. Versions 1 and 2 did not send it in `open`; version 3 had no
`lr_factor` in updates; version 4 had no `fetch` and `put`; in version 5 only a session with one trainer had them;
version 6 had no budgets; version 7 had no deltas."""

MAX_BODY_BYTES = 16 << 20
"""Maximum size of an action's body or a header; 10,000 tables take 4 MB."""

MAX_TRAINERS = 4_096
MAX_SHARDS = 4_096
MAX_TABLE_GROUPS = 64
MAX_TABLES = 10_000
"""Maximum number of tables in a table group."""
MAX_DIM = 8_192
MAX_ROWS = 1 << 40
"""Maximum number of rows of one table, in all shards. A shard allocates rows when their ids arrive."""
MAX_COUNT = (1 << 31) - 1
"""Maximum of counts and windows, which are stored as int32."""
MAX_STEP = (1 << 53) - 1
"""The largest integer that is exact in JSON of every language."""
MAX_CHECKPOINT = 99_999_999
"""Maximum checkpoint number; checkpoint names have eight digits."""
MAX_SEEN_BYTES = 1 << 30
"""Maximum size of a set of keys."""
MAX_LINE = 400
"""Maximum number of characters in an error, which may quote the request."""

Consumer = Literal["checkpoints", "publications"]
"""What changes are copied for; also the names of the folders in that of a run."""
Step = Annotated[int, Field(ge=0, le=MAX_STEP)]
Name = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f]+$")]
TableGroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
PartitionNumber = Annotated[int, Field(ge=0, lt=MAX_SHARDS)]
Bytes = Annotated[int, Field(ge=1, le=MAX_STEP)]
Trainer = Annotated[int, Field(ge=0, lt=MAX_TRAINERS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def from_json(cls, action: str, data: bytes) -> Self:
        """Parse and check a body.

        Raises:
            ShardError: The body is invalid; the text names the action, the field, the given and the expected value.
        """
        body: Self = parse(action, data, cls.model_validate_json)
        return body


class EndWindowRequest(_Body):
    """Request to end a window, after all trainers applied its last step.

    Attributes:
        session: Session, as in `open`.
        window: Number of windows ended in this session, including this one.
        step: Last step of the window.
        client: Client, as in `open`.
        budgets: For each table group, the bytes of partitions by number, as decided after a first request.
    """

    session: Name
    window: Annotated[int, Field(ge=1, le=MAX_STEP)]
    step: Step
    client: Name | None = None
    budgets: dict[TableGroupName, dict[PartitionNumber, Bytes]] | None = None


class SaveRequest(_Body):
    """Request to write a part of a checkpoint.

    Attributes:
        session: Session, as in `open`.
        folder: Name of the checkpoint's temporary folder.
        step: Step of the checkpoint.
        client: Client, as in `open`.
    """

    session: Name
    folder: Name
    step: Step
    client: Name | None = None


class RecordChangesRequest(_Body):
    """Request to record changes from now on.

    Attributes:
        session: Session, as in `open`.
        consumer: Who needs them.
        number: The publication that has the state of now; None for checkpoints, where it is the one of `open`.
        client: Client, as in `open`.
    """

    session: Name
    consumer: Consumer = "checkpoints"
    number: Annotated[int, Field(ge=1, le=MAX_CHECKPOINT)] | None = None
    client: Name | None = None


class TakeDeltasRequest(_Body):
    """Request to copy what changed, for a checkpoint or a publication.

    Attributes:
        session: Session, as in `open`.
        number: Its number.
        step: Its step.
        saved: The complete checkpoint that it continues; None to copy everything.
        everything: Table groups of which everything is copied in any case.
        consumer: What it is.
        client: Client, as in `open`.
    """

    session: Name
    number: Annotated[int, Field(ge=1, le=MAX_CHECKPOINT)]
    step: Step
    saved: Annotated[int, Field(ge=1, le=MAX_CHECKPOINT)] | None = None
    everything: Annotated[list[Name], Field(max_length=MAX_TABLE_GROUPS)] = []
    consumer: Consumer = "checkpoints"
    client: Name | None = None


class WriteDeltasRequest(_Body):
    """Request to write what was copied as segments.

    Attributes:
        session: Session, as in `open`.
        folder: Name of the temporary folder of the checkpoint or publication.
        names: For each table group, the names of the segments of the shard's parts.
        as_int8: Whether weights are stored as int8.
        consumer: For whom they were copied.
        client: Client, as in `open`.
    """

    session: Name
    folder: Name
    names: dict[Name, list[Annotated[str, Field(pattern=f"^{SEGMENT_NAME}$", max_length=100)]]]
    as_int8: bool = False
    consumer: Consumer = "checkpoints"
    client: Name | None = None


class ChangesRequest(_Body):
    """The ticket of a stream of changes.

    Attributes:
        what: "changes".
        session: Session, as in `open`.
        table_group: Name of the table group.
        since: Version the consumer has; 0 for all rows.
        step: Step at which the changes are consistent.
        client: Client, as in `open`.
    """

    what: Literal["changes"]
    session: Name
    table_group: Name
    since: Step
    step: Step
    client: Name


class SeenKeysRequest(_Body):
    """The ticket of the set of keys that have a state in a shard.

    Attributes:
        what: "seen_keys".
        session: Session, as in `open`.
        table_group: Name of the table group.
        num_bytes: Size of the set.
        client: Client, as in `open`.
    """

    what: Literal["seen_keys"]
    session: Name
    table_group: Name
    num_bytes: Annotated[int, Field(ge=64, le=MAX_SEEN_BYTES)]
    client: Name


class Ticket(BaseModel):
    """The field of a ticket that says what is asked for."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    what: Literal["changes", "seen_keys"]


class AcknowledgeRequest(_Body):
    """Notice that a consumer of changes has all of them up to a version.

    Attributes:
        session: Session, as in `open`.
        table_group: Name of the table group.
        consumer: Name of the consumer.
        version: Version that it has.
        client: Client, as in `open`.
    """

    session: Name
    table_group: Name
    consumer: Name
    version: Step
    client: Name | None = None


class _Table(_Body):
    """A `TableConfig`, which checks everything else."""

    model_config = ConfigDict(extra="allow")

    name: Name
    embedding_dim: Annotated[int, Field(ge=1, le=MAX_DIM)]


class _Budget(_Body):
    num_bytes: Bytes
    retention: dict[str, Any]


class _Spec(_Body):
    tables: Annotated[list[_Table], Field(min_length=1, max_length=MAX_TABLES)]
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
    budget: _Budget | None


class _Plan(_Body):
    num_shards: Annotated[int, Field(ge=1, le=MAX_SHARDS)]
    owners: Annotated[list[Annotated[int, Field(ge=ROW_WISE, lt=MAX_SHARDS)]], Field(max_length=MAX_TABLES)]
    num_partitions: Annotated[int, Field(ge=1, le=MAX_SHARDS)] | None


class _TableGroup(_Body):
    spec: _Spec
    plan: _Plan


class _OpenBody(_Body):
    run: Name
    session: Name
    shard: Annotated[int, Field(ge=0, lt=MAX_SHARDS)]
    num_trainers: Annotated[int, Field(ge=1, le=MAX_TRAINERS)]
    table_groups: Annotated[dict[TableGroupName, _TableGroup], Field(min_length=1, max_length=MAX_TABLE_GROUPS)]
    step: Step
    checkpoint: Annotated[int, Field(ge=0, le=MAX_CHECKPOINT)] | None
    merged: bool
    trainer: Trainer | None = None
    client: Name | None = None
    protocol: int


@dataclass(frozen=True)
class OpenRequest:
    """A trainer's request to open a session.

    Attributes:
        run: Identifier of the run, such as a hash of its folder; another run cannot take over a busy shard.
        session: Name of the session, equal for all its trainers.
        shard: Number of this shard in the plan.
        num_trainers: Number of trainers in the session.
        table_groups: `TableGroupSpec` and `ShardingPlan` of each table group by name.
        step: Number of the last applied step.
        checkpoint: Number of the checkpoint to start from; None to start from initial values.
        merged: Whether updates of a step are merged (synchronous) or applied as they arrive.
        trainer: Number of the trainer; None if not known yet.
        client: Random secret name of the client process; None to use the connection's address.
        protocol: Protocol version, `PROTOCOL`.
    """

    run: str
    session: str
    shard: int
    num_trainers: int
    table_groups: Mapping[str, tuple[TableGroupSpec, ShardingPlan]]
    step: int
    checkpoint: int | None
    merged: bool
    trainer: int | None = None
    client: str | None = None
    protocol: int = PROTOCOL

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        groups = {
            name: {"spec": spec.to_dict(), "plan": plan.to_dict()} for name, (spec, plan) in self.table_groups.items()
        }
        return {field: getattr(self, field) for field in self.__dataclass_fields__} | {"table_groups": groups}

    @classmethod
    def from_json(cls, data: bytes) -> OpenRequest:
        """Parse `to_dict` as JSON.

        Raises:
            ShardError: The body is invalid; the text names the field, the given and the expected value.
        """
        check_protocol("open", data)
        body = _OpenBody.from_json("open", data)
        if body.trainer is not None and body.trainer >= body.num_trainers:
            raise ShardError(f"open: trainer: given {body.trainer}, expected 0 <= trainer < {body.num_trainers}")
        groups = {
            name: _read_group(f"open: table_groups.{name}", group, body.shard)
            for name, group in body.table_groups.items()
        }
        fields = {name: getattr(body, name) for name in _OpenBody.model_fields}
        return cls(**fields | {"table_groups": groups})

    def training(self) -> dict[str, Any]:
        """The part of `to_dict` that is equal for all trainers of a session."""
        values = self.to_dict()
        return {name: value for name, value in values.items() if name not in ("trainer", "client")}

    def checksum(self) -> str:
        """Checksum of `training`, equal for all trainers of the same session."""
        return hashlib.sha256(json.dumps(self.training(), sort_keys=True).encode()).hexdigest()


class _Versioned(BaseModel):
    """The version field of a message of any version."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    protocol: int | None = None


def check_protocol(what: str, data: bytes) -> None:
    """Check the protocol version before anything else, because fields may have other names in other versions.

    Raises:
        ShardError: The version differs (the text names both), or the data is not JSON.
    """
    given = parse(what, data, _Versioned.model_validate_json).protocol
    if given != PROTOCOL:
        shown = "2 or earlier" if given is None else given
        raise ShardError(f"protocol {shown}: this shard uses {PROTOCOL}; use the same version of headrace")


def parse(what: str, data: bytes, read: Any) -> Any:
    """Parse and check JSON.

    Args:
        what: Name for errors.
        data: The received bytes.
        read: Pydantic's `validate_json` for the type.

    Raises:
        ShardError: The data is invalid; one line with `what`, the field, the given and the expected value.
    """
    if len(data) > MAX_BODY_BYTES:
        raise ShardError(f"{what}: given {len(data)} bytes, expected at most {MAX_BODY_BYTES}")
    try:
        return read(data)
    except ValidationError as error:
        # Unknown keys first, because a misspelled key is also reported as missing.
        mistakes = sorted(error.errors(include_url=False), key=lambda mistake: mistake["type"] not in UNKNOWN)
        line = f"{what}: {_describe(mistakes[0], data)}"
    raise ShardError(line[:MAX_LINE])


UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _describe(mistake: Any, data: bytes) -> str:
    kind, given = mistake["type"], mistake["input"]
    if kind == "json_invalid":
        return f"given {data[:40]!r}, expected JSON"
    if not mistake["loc"]:
        return f"given {type(given).__name__}, expected a JSON object"
    field = ".".join(map(str, mistake["loc"]))
    if kind in UNKNOWN or "missing" in kind:
        return f"{field}: {'unknown' if kind in UNKNOWN else 'missing'}"
    expected = mistake["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{field}: given {_short(given)}, expected {expected[:1].lower()}{expected[1:]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _read_group(where: str, group: _TableGroup, shard: int) -> tuple[TableGroupSpec, ShardingPlan]:
    spec, plan = group.spec, group.plan
    tables = [_read_table(f"{where}.spec.tables.{table.name}", table) for table in spec.tables]
    first = tables[0]
    for table in tables:
        if (table.optimizer.kind, table.rows) != (first.optimizer.kind, first.rows):
            raise ShardError(
                f"{where}.spec.tables.{table.name}: {table.optimizer.kind} on {table.rows} rows, expected as in the "
                f"first table: {first.optimizer.kind} on {first.rows} rows"[:MAX_LINE]
            )
    if shard >= plan.num_shards or len(plan.owners) != len(tables):
        raise ShardError(
            f"{where}: shard {shard} of {plan.num_shards}, {len(plan.owners)} owners for {len(tables)} tables"
        )
    try:
        sharding = ShardingPlan(plan.num_shards, tuple(plan.owners), plan.num_partitions)
        budget = None if spec.budget is None else read_budget(spec.budget.num_bytes, spec.budget.retention)
        return TableGroupSpec(tables, spec.seed, budget), sharding
    except ConfigError as error:
        raise ShardError(f"{where}: {error}"[:MAX_LINE]) from error


def _read_table(where: str, table: _Table) -> TableConfig:
    try:
        config = TableConfig.from_dict(table.model_dump(), where=where)
    except ConfigError as error:
        raise ShardError(str(error)[:MAX_LINE]) from error
    optimizer = {f"optimizer.{name}": value for name, value in config.optimizer.model_dump().items()}
    numbers = {"init_scale": config.init_scale} | optimizer
    for name, number in numbers.items():
        if isinstance(number, float) and not math.isfinite(number):
            raise ShardError(f"{where}.{name}: given {number}, expected a finite number"[:MAX_LINE])
    for name, most in (("num_embeddings", MAX_ROWS), ("admission_count", MAX_COUNT), ("evict_after", MAX_COUNT)):
        if (getattr(config, name) or 0) > most:
            raise ShardError(f"{where}.{name}: given {getattr(config, name)}, expected at most {most}"[:MAX_LINE])
    return config
