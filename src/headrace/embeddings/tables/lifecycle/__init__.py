"""Admission and retention policies of ids, one file per policy; `policies` defines the interfaces."""

from collections.abc import Sequence

from headrace.embeddings.config import TableConfig
from headrace.embeddings.tables.lifecycle.count_admission import CountAdmission
from headrace.embeddings.tables.lifecycle.policies import AdmissionPolicy, IdHistory, RetentionPolicy
from headrace.embeddings.tables.lifecycle.window_retention import WindowRetention

__all__ = [
    "AdmissionPolicy",
    "CountAdmission",
    "IdHistory",
    "RetentionPolicy",
    "WindowRetention",
    "admission_of",
    "retention_of",
]


def admission_of(configs: Sequence[TableConfig]) -> AdmissionPolicy:
    """The admission policy of a table group."""
    return CountAdmission([config.admission_count for config in configs])


def retention_of(configs: Sequence[TableConfig]) -> list[RetentionPolicy]:
    """The retention policies of a table group; an empty list keeps all ids."""
    evict_after = [config.evict_after for config in configs]
    return [WindowRetention(evict_after)] if any(evict_after) else []
