"""Data pipelines: lazy chains of stages over logs, run by a variable number of workers and resumable at any batch."""

from headrace.pipeline.adapters import from_dataloader, from_huggingface, from_ray, from_tfdata
from headrace.pipeline.engine.batch_iterator import BatchIterator, Peek
from headrace.pipeline.engine.counters import ConsumerReading, PipelineCounters, StageReading
from headrace.pipeline.engine.tuners import Tunable
from headrace.pipeline.pipeline import Pipeline
from headrace.pipeline.reading import from_iterable, from_source, from_sources, read_arrow, read_parquet
from headrace.pipeline.row_stats import RowStats
from headrace.pipeline.sources import IterableSource, TableSource, to_record_batch
from headrace.pipeline.transformations.slices import GrowingSize

__all__ = [
    "BatchIterator",
    "ConsumerReading",
    "GrowingSize",
    "IterableSource",
    "Peek",
    "Pipeline",
    "PipelineCounters",
    "RowStats",
    "StageReading",
    "TableSource",
    "Tunable",
    "from_dataloader",
    "from_huggingface",
    "from_iterable",
    "from_ray",
    "from_source",
    "from_sources",
    "from_tfdata",
    "read_arrow",
    "read_parquet",
    "to_record_batch",
]
