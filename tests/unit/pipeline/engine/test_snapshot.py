"""A state is small plain data, and refuses to continue a pipeline it does not belong to."""

import json

import pytest

from headrace.errors import CheckpointError, VersionMismatch
from headrace.pipeline import from_source
from headrace.pipeline.engine.snapshot import Position, load_state, make_state
from headrace.testing.pipelines import SyntheticSource

STAGES = ("source of 3 items", "batch")


def test_a_position_survives_being_a_token() -> None:
    position = Position(5, 2, ((7, 1), (9, 4)))
    assert Position.from_token(position.to_token(2), 2) == position
    assert position.to_token(1) == ((5, 2), 7, 1)


def test_a_state_survives_json() -> None:
    state = make_state(STAGES, 3, Position(1, 2, ((4, 5),)))
    assert load_state(json.loads(json.dumps(state)), STAGES) == (3, Position(1, 2, ((4, 5),)))
    assert len(json.dumps(state)) < 300


def test_the_state_of_another_pipeline_is_refused_with_both_sides_in_the_text() -> None:
    state = make_state(STAGES, 0, Position(0, 0, ((0, 0),)))
    with pytest.raises(
        CheckpointError, match=r"saved by .*source of 3 items -> batch.*this one is .*source of 4 items"
    ):
        load_state(state, ("source of 4 items", "batch"))


@pytest.mark.parametrize("version", [0, 2, None])
def test_another_version_is_refused_with_both_versions_in_the_text(version: object) -> None:
    with pytest.raises(VersionMismatch, match=f"given version {version}, expected 1"):
        load_state({**make_state(STAGES, 0, Position(0, 0, ())), "version": version}, STAGES)


def test_an_unreadable_state_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not readable"):
        load_state({"version": 1, "stages": list(STAGES), "epoch": 0, "position": [{"item": 1}]}, STAGES)


def test_what_decides_the_order_belongs_to_the_signature_and_the_batch_size_does_not() -> None:
    source = SyntheticSource([[(10, 0, 0)]])
    pipe = from_source(source)
    assert pipe.batch(3).signature == pipe.batch(4).signature
    assert pipe.shuffle(num_rows=5, seed=1).signature != pipe.shuffle(num_rows=5, seed=2).signature
    assert pipe.shuffle(num_rows=5).signature != pipe.shuffle(num_rows=6).signature


def test_a_batch_size_may_change_on_resume() -> None:
    pipe = from_source(SyntheticSource([[(10, 0, 0)]]))
    with pipe.batch(3).open(executor="inline") as batches:
        next(batches)
        state = batches.state_dict()
    with pipe.batch(4).open(executor="inline", state=state) as batches:
        assert next(batches)["value"].to_pylist() == [3, 4, 5, 6]
