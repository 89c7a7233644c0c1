"""What a new run uses where its job file leaves a setting open, as lines for the user."""

from __future__ import annotations

from headrace.features import FeaturePlan
from headrace.messages import count_of
from headrace.training.batch_size import LARGEST_BATCH, SMALLEST_BATCH
from headrace.training.job import JobConfig
from headrace.training.precision import PrecisionChoice

__all__ = ["describe_choices"]


def describe_choices(
    job: JobConfig, plan: FeaturePlan, precision: PrecisionChoice, placement: str | None = None
) -> list[str]:
    """Describe the choices that a job file leaves to headrace, one line per choice, with the reason.

    Args:
        job: The job.
        plan: Its feature plan.
        precision: The precision of its matrix products.
        placement: Where the rows of its shards are, with the reason; None without shards.
    """
    lines = []
    if job.features is None:
        num_dense, sparse = len(plan.dense_names), count_of(len(plan.sparse_keys), "sparse feature")
        lines.append(f"features: all columns of the schema, as {num_dense:,} dense and {sparse}")
    if not {"default", "tables"} & job.embeddings.model_fields_set:
        tables = job.embeddings.default
        lines.append(f"embeddings: a {tables.kind} table of {tables.num_embeddings:,} rows per sparse feature")
    if "model" not in job.model_fields_set:
        lines.append(f"model: {job.model.kind}, whose steps are the fastest; headrace init chooses one for the log")
    if job.training.batch_size == "auto":
        lines.append(
            f"training.batch_size: {SMALLEST_BATCH} rows at first, so that a short log has enough steps; up to "
            f"{LARGEST_BATCH:,} as more rows have been seen"
        )
    if job.training.precision == "auto":
        lines.append(f"training.precision: {precision.reason}")
    if placement is not None and job.placement.policy == "auto":
        lines.append(f"placement.policy: {placement}")
    return [f"default {line}" for line in lines]
