"""Logs with sessions for tests: values that repeat, lists that shift either way, nulls, texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.logs.schema import Schema

SCHEMA = Schema.from_dict(
    {
        "labels": ["click"],
        "dense": ["age", "price"],
        "ids": ["user", "item", {"name": "country", "type": "string"}],
        "id_lists": [
            {"name": "history", "weights": "scores"},
            "newest",
            {"name": "tags", "type": "string"},
        ],
        "timestamp": {"name": "time", "unit": "ms"},
        "session_id": "session",
    },
    where="test",
)


def session_rows(num_rows: int, seed: int, *, rows_per_session: float = 6.0, first_session: int = 0) -> pa.Table:
    """Rows in order of time with sessions mixed; `note` is a column the schema does not name."""
    random = np.random.default_rng(seed)
    num_sessions = max(1, int(num_rows / rows_per_session))
    session = np.sort(random.integers(0, num_sessions, num_rows))
    state: dict[int, dict[str, object]] = {}
    rows = []
    for number in session.tolist():
        if number not in state:
            state[number] = {
                "user": number % 17,
                "age": None if random.random() < 0.2 else float(random.integers(0, 99)),
                "country": random.choice(["de", "fr", None]),
                "history": random.integers(0, 1000, random.integers(0, 9)).tolist(),
                "newest": random.integers(0, 1000, 6).tolist(),
                "tags": None if random.random() < 0.3 else [f"t{v}" for v in random.integers(0, 9, 3)],
            }
        now = state[number]
        if random.random() < 0.3 and now["history"]:
            now["history"] = [*now["history"][1:], int(random.integers(0, 1000))]
        if random.random() < 0.1:
            now["history"] = random.integers(0, 1000, random.integers(0, 9)).tolist()
        if random.random() < 0.3:
            now["newest"] = [int(random.integers(0, 1000)), *now["newest"][:-1]]
        if random.random() < 0.1:
            now["age"] = float(random.integers(0, 99))
        rows.append(
            {
                "session": number + first_session,
                "click": int(random.random() < 0.3),
                "item": int(random.integers(0, 1000)),
                "price": float(random.random()),
                "note": random.choice(["x", "y"]),
                **now,
                "scores": [value / 8 for value in now["history"]],
            }
        )
    table = pa.Table.from_pylist(
        rows,
        schema=pa.schema(
            [
                ("session", pa.int64()),
                ("time", pa.int64()),
                ("click", pa.int8()),
                ("user", pa.int64()),
                ("item", pa.int32()),
                ("age", pa.float32()),
                ("price", pa.float64()),
                ("country", pa.string()),
                ("history", pa.list_(pa.int64())),
                ("scores", pa.list_(pa.float32())),
                ("newest", pa.list_(pa.int64())),
                ("tags", pa.list_(pa.string())),
                ("note", pa.string()),
            ]
        ),
    )
    # Every session starts somewhere and goes on at its own pace: sorted by time, sessions are mixed.
    times = random.integers(0, 3_600_000, num_sessions)[session] + np.cumsum(random.integers(1, 50_000, num_rows))
    table = table.set_column(1, "time", pa.array(times - times.min() + 1_700_000_000_000))
    return table.take(np.argsort(times, kind="stable"))


def write_log(folder: Path, parts: dict[str, pa.Table], *, rows_per_group: int = 64) -> Path:
    """Write files by their names below the folder, and the schema beside them."""
    for name, table in parts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=rows_per_group)
    (folder / "schema.yaml").write_text(SCHEMA.to_yaml(), encoding="utf-8")
    return folder
