"""Presets of synthetic logs with published statistics of production recommenders: sessions, duplication, columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PRESETS"]

# RecD (MLSys 2023, section 3): 16.5 rows per session in an hourly partition, interleaved by time so that a batch of
# 4096 has 1.15 rows per session; 82 % of bytes repeat exactly, 89 % including lists that only shift. It is not
# published which columns change together; here they come in blocks, like features of one upstream job.
_SESSIONS: Mapping[str, Any] = {
    "rows": 100_000,
    "windows": 1,
    "rows_per_session": 16.5,
    "session_spread": "window",
    "users": 5_000_000,
    "user_zipf": 0.0,
    "items": 5_000_000,
    "zipf": 0.0,
    "change_ratio": 0.03,
    "change_ratio_to": 0.19,
    "list_renewal_ratio": 0.25,
    "list_max_length": 500,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "rm1": {
        **_SESSIONS,
        "id_lists": 20,
        "lists_together": 4,
        "list_mean_length": 60.0,
        "item_lists": 6,
        "item_list_mean_length": 3.0,
        "user_dense": 14,
        "dense_together": 7,
        "item_dense": 6,
    },
    "mixed": {
        **_SESSIONS,
        "id_lists": 40,
        "lists_together": 4,
        "list_mean_length": 20.0,
        "item_lists": 2,
        "item_list_mean_length": 3.0,
        "user_dense": 500,
        "dense_together": 50,
        "item_dense": 4,
    },
    "control": {
        **_SESSIONS,
        "change_ratio": 1.0,
        "change_ratio_to": None,
        "list_renewal_ratio": 1.0,
        "id_lists": 20,
        "list_mean_length": 20.0,
        "user_dense": 50,
        "item_dense": 50,
    },
}
"""`rm1`: history-heavy, 20 histories of mean length 60 (some to 500), 6 short item lists, 20 dense. `mixed`: 42 id
lists and 504 dense, as RM2 and RM3 (DPP, ISCA 2022). `control`: sessions in which everything except the user always
changes."""
