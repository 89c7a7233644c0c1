"""Pipelines: a lazy chain of stages over logs, run by workers that may change in number, with an exact position."""

from headrace.pipeline.adapters import from_dataloader, from_huggingface, from_ray, from_tfdata
from headrace.pipeline.counters import ConsumerReading, PipelineCounters, StageReading
from headrace.pipeline.elements import Account
from headrace.pipeline.graph import Pipeline, from_iterable, from_source, read_arrow, read_parquet
from headrace.pipeline.iterator import BatchIterator
from headrace.pipeline.sources import IterableSource, TableSource, to_record_batch
from headrace.pipeline.tunables import Tunable

__all__ = [
    "Account",
    "BatchIterator",
    "ConsumerReading",
    "IterableSource",
    "Pipeline",
    "PipelineCounters",
    "StageReading",
    "TableSource",
    "Tunable",
    "from_dataloader",
    "from_huggingface",
    "from_iterable",
    "from_ray",
    "from_source",
    "from_tfdata",
    "read_arrow",
    "read_parquet",
    "to_record_batch",
]
