"""Pipelines: a lazy chain of stages over logs, run by workers that may change in number, with an exact position."""

from headrace.pipeline.adapters import from_dataloader, from_huggingface, from_ray, from_tfdata
from headrace.pipeline.engine.batch_iterator import BatchIterator
from headrace.pipeline.engine.counters import ConsumerReading, PipelineCounters, StageReading
from headrace.pipeline.engine.element import Account
from headrace.pipeline.engine.tunables import Tunable
from headrace.pipeline.pipeline import Pipeline, from_iterable, from_source, read_arrow, read_parquet
from headrace.pipeline.sources import IterableSource, TableSource, to_record_batch

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
