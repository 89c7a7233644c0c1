"""Lines for the user: what a run uses where its job file leaves a setting open, and which settings it does not use."""

from __future__ import annotations

from headrace.features import FeaturePlan
from headrace.messages import count_of
from headrace.training.batch_size import LARGEST_BATCH, smallest_batch
from headrace.training.job import JobConfig
from headrace.training.precision import PrecisionChoice

__all__ = ["describe_choices", "describe_unused"]


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
        first = smallest_batch(job.training.batch_size, job.training.first_batch_size)
        lines.append(
            f"training.batch_size: {first} rows at first, so that a short log has enough steps; up to "
            f"{LARGEST_BATCH:,} as more rows have been seen"
        )
    if job.training.precision == "auto":
        lines.append(f"training.precision: {precision.reason}")
    if placement is not None and job.placement.policy == "auto":
        lines.append(f"placement.policy: {placement}")
    return [f"default {line}" for line in lines]


def describe_unused(job: JobConfig, *, keeps_rows: bool, has_scheduler: bool, num_trainers: int = 1) -> list[str]:
    """Describe the settings of a job file that have no effect on this run, one line per reason.

    They are no mistakes: the same file has an effect with `headrace launch`, which adds shards.

    Args:
        job: The job.
        keeps_rows: Whether rows of shards are kept where they are trained, see `PlacementConfig`.
        has_scheduler: Whether a scheduler runs the steps, instead of the plain loop.
        num_trainers: Number of trainers.
    """
    shards, functions = job.cluster.shards, job.pipeline.map or job.pipeline.filter
    placement = [key for key, value in job.placement.changed().items() if (key, value) != ("policy", "none")]
    lines = []
    if not shards:
        names = [f"cluster.{key}" for key in job.cluster.changed()] + [f"placement.{key}" for key in placement]
        lines.append((names, "there are no shards; headrace launch starts some"))
    elif not keeps_rows:
        lines.append(([f"placement.{key}" for key in placement], "rows stay in the shards"))
    elif num_trainers == 1 and "samples" in placement:
        lines.append((["placement.samples"], "there is one trainer; headrace launch --trainers starts more"))
    if not has_scheduler:
        names = [f"scheduler.{key}" for key in job.scheduler.changed()]
        lines.append((names, "steps run without a scheduler; scheduler.policy can name one"))
    if job.pipeline.executor == "process" and not functions:
        lines.append((["pipeline.executor"], "there are no functions in pipeline.map or pipeline.filter"))
    return [f"unused {', '.join(names)}: {reason}" for names, reason in lines if names]
