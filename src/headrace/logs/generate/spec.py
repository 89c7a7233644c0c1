"""`GenerateConfig`: size, sessions, columns, skew, drift and label signal of a synthetic log."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headrace.config import Config
from headrace.logs.schema import DenseColumn, IdColumn, IdListColumn, LabelColumn, Schema, TimestampColumn

__all__ = ["GenerateConfig"]

Cardinality = Annotated[int, Field(ge=2, le=50_000_000)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class GenerateConfig(Config):
    """Configuration of a synthetic log. Equal configs give equal rows, and every window can be generated separately.

    A session is one user's visit. Its rows have the same user, the user's segments, dense values and id lists (which
    change occasionally), and a new item each. With the defaults, a DLRM comes close to the best reachable normalised
    entropy (about 0.85) within 300,000 rows.

    Attributes:
        rows: Total rows of all windows.
        windows: Number of windows, one folder each, with equal numbers of rows.
        seed: Random seed.
        start_ms: Start of the first window, in milliseconds since 1970-01-01 UTC.
        window_seconds: Seconds per window.
        rows_per_session: Mean of the geometric number of rows in a session.
        row_gap_seconds: Mean seconds between rows of a session; reduced if a session would exceed its window.
        session_spread: "visit": consecutive rows of a session are `row_gap_seconds` apart; "window": they are anywhere
            in the window, as in logs whose sessions are as long as their partitions.
        change_ratio: Probability that a user-side column (segment, dense, list) differs from the session's previous
            row.
        change_ratio_to: Vary the probability evenly over columns, from `change_ratio` to this value; None for equal
            values.
        dense_together: Number of neighbouring user-side dense columns that change in the same rows.
        lists_together: Number of neighbouring user-side lists that change in the same rows.
        users: Active users at any time.
        items: Active items at any time.
        user_segments: Cardinality of each further user-side id column.
        item_categories: Cardinality of each further item-side id column, which is a function of the item.
        user_dense: Number of user-side dense columns.
        item_dense: Number of dense columns that differ in every row.
        id_lists: Number of user-side id lists. The first contains items; lists shift by appending an id and dropping
            the oldest.
        list_mean_length: Mean list length before the maximum is applied; a user's lists keep their length.
        list_max_length: Maximum list length.
        list_renewal_ratio: Share of changes within a session that bring an entirely new list.
        list_shifts_per_window: Ids that a user's lists gain per window, in addition to changes within sessions.
        item_lists: Number of id lists that differ in every row.
        item_list_mean_length: Mean length of those lists.
        zipf: Zipf exponent of the popularity of items, segments and categories; 0 is uniform.
        user_zipf: Zipf exponent of user activity.
        new_ids_ratio: Share of users and items replaced in each window.
        drift_ratio: Share of the teacher's hidden effects redrawn in each window.
        label_rate: Target share of clicks; windows differ slightly.
        signal: Standard deviation of the teacher's logit. With 0 there is nothing to learn; with 1.15 the best
            reachable normalised entropy is about 0.85 at a label rate of 0.25.
    """

    rows: int = Field(default=300_000, ge=1)
    windows: int = Field(default=3, ge=1, le=100_000)
    seed: int = Field(default=7, ge=0, lt=2**63)
    start_ms: int = Field(default=1_700_000_000_000, ge=0)
    window_seconds: int = Field(default=3600, ge=1)
    rows_per_session: float = Field(default=8.0, ge=1)
    row_gap_seconds: float = Field(default=30.0, ge=0)
    session_spread: Literal["visit", "window"] = "visit"
    change_ratio: Ratio = 0.05
    change_ratio_to: Ratio | None = None
    dense_together: int = Field(default=1, ge=1)
    lists_together: int = Field(default=1, ge=1)
    users: Cardinality = 20_000
    items: Cardinality = 5_000
    user_segments: tuple[Cardinality, ...] = Field(default=(12, 50, 400), min_length=1)
    item_categories: tuple[Cardinality, ...] = Field(default=(20, 200), min_length=1)
    user_dense: int = Field(default=4, ge=0, le=4096)
    item_dense: int = Field(default=4, ge=0, le=4096)
    id_lists: int = Field(default=2, ge=0, le=1024)
    list_mean_length: float = Field(default=12.0, ge=0)
    list_max_length: int = Field(default=50, ge=1)
    list_renewal_ratio: Ratio = 0.0
    list_shifts_per_window: int = Field(default=4, ge=1)
    item_lists: int = Field(default=0, ge=0, le=1024)
    item_list_mean_length: float = Field(default=5.0, ge=0)
    zipf: float = Field(default=1.05, ge=0, le=4)
    user_zipf: float = Field(default=0.6, ge=0, le=4)
    new_ids_ratio: Ratio = 0.02
    drift_ratio: Ratio = 0.02
    label_rate: float = Field(default=0.25, gt=0, lt=1)
    signal: float = Field(default=1.15, ge=0, le=20)

    @model_validator(mode="after")
    def _every_window_has_rows(self) -> Self:
        if self.windows > self.rows:
            raise ValueError(f"windows must not exceed rows, given {self.windows} windows for {self.rows} rows")
        return self

    def window_rows(self, window: int) -> int:
        """Number of rows of a window; the first windows get the remainder."""
        return self.rows // self.windows + (window < self.rows % self.windows)

    def window_first_row(self, window: int) -> int:
        """Row number of a window's first row."""
        return window * (self.rows // self.windows) + min(window, self.rows % self.windows)

    @property
    def id_names(self) -> tuple[str, ...]:
        """Single-id columns: the user side, then the item side."""
        segments = tuple(f"segment_{c}" for c in range(len(self.user_segments)))
        categories = tuple(f"category_{c}" for c in range(len(self.item_categories)))
        return ("user", *segments, "item", *categories)

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Dense columns: the user side, then the item side. In each, every second one is a long-tailed count."""
        return tuple(f"user_x{c}" for c in range(self.user_dense)) + tuple(f"item_x{c}" for c in range(self.item_dense))

    @property
    def list_names(self) -> tuple[str, ...]:
        """Id lists: the user side, then the item side."""
        user_side = ("history", *(f"list_{c}" for c in range(1, self.id_lists)))[: self.id_lists]
        return (*user_side, *(f"item_list_{c}" for c in range(self.item_lists)))

    @property
    def change_groups(self) -> tuple[int, ...]:
        """Change group of each user-side column that may change (segments, dense, lists)."""
        first_dense = len(self.user_segments)
        first_list = first_dense + -(-self.user_dense // self.dense_together)
        dense = (first_dense + c // self.dense_together for c in range(self.user_dense))
        lists = (first_list + c // self.lists_together for c in range(self.id_lists))
        return (*range(first_dense), *dense, *lists)

    @property
    def change_ratios(self) -> tuple[float, ...]:
        """Probability of a change from row to row, for each group of `change_groups`."""
        count = max(self.change_groups) + 1
        first, last = self.change_ratio, self.change_ratio if self.change_ratio_to is None else self.change_ratio_to
        # The golden ratio spreads neighbours apart, so that every kind of column covers the whole range.
        shares = [0.5 if count == 1 else (group * 0.6180339887498949) % 1.0 for group in range(count)]
        return tuple(first + (last - first) * share for share in shares)

    def log_schema(self) -> Schema:
        """The schema of the log."""
        return Schema(
            labels=(LabelColumn(name="click"),),
            dense=tuple(DenseColumn(name=name) for name in self.dense_names),
            ids=tuple(IdColumn(name=name) for name in self.id_names),
            id_lists=tuple(IdListColumn(name=name, max_length=self.list_max_length) for name in self.list_names),
            timestamp=TimestampColumn(name="timestamp", unit="ms"),
            session_id="session",
            row_id="row",
        )
