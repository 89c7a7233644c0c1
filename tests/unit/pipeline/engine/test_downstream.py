"""A stage that the consumer of a pipeline runs itself is counted behind the pipeline's own."""

from __future__ import annotations

import pyarrow as pa

from headrace.pipeline import read_arrow
from headrace.pipeline.transformations.chain import StageUse


def test_a_stage_behind_the_pipeline_comes_last_and_its_user_is_the_consumer() -> None:
    with read_arrow(pa.table({"x": range(40)})).batch(10).open(executor="inline", tuner="none") as batches:
        stage = batches.add_stage("features", num_workers=2)
        for number, batch in enumerate(batches):
            stage.arrived()
            if number < 3:
                stage.add(StageUse(0.5, 0.75, 10, 10, 200), batch.nbytes)
            if number < 2:
                stage.delivered(10, wait_s=0.25, busy_s=1.0)
        seen = batches.counters(float("inf"))
    assert list(seen.stages) == ["source", "batch", "features"]
    features = seen.stages["features"]
    assert (features.num_elements, features.cpu_s, features.wall_s, features.num_workers) == (3, 1.5, 2.25, 2)
    assert (features.queue_depth, features.num_running) == (1, 1)
    assert seen.stages["batch"].num_elements == 4
    assert seen.stages["batch"].visit_ratio == 2.0, "batches for each that the consumer used"
    assert (seen.consumer.num_batches, seen.consumer.wait_s, seen.consumer.busy_s) == (2, 0.5, 2.0)


def test_without_a_stage_of_its_own_the_consumer_is_the_one_that_takes_batches() -> None:
    with read_arrow(pa.table({"x": range(40)})).batch(10).open(executor="inline", tuner="none") as batches:
        assert len(list(batches)) == 4
        assert batches.counters(float("inf")).consumer.num_batches == 4
