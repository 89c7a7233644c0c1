"""A state is small plain data, and refuses to continue a pipeline it does not belong to."""

import json

import pytest

from headrace.errors import CheckpointError, VersionMismatch
from headrace.pipeline import from_source
from headrace.pipeline.engine.position import Position, in_first_segment, load_state, make_state, saved_segment
from headrace.testing.pipelines import SyntheticSource

STAGES = ("source of 3 items", "batch")


def test_a_position_in_front_of_a_rebatcher_and_behind_it_again_is_the_same() -> None:
    position = Position(5, 2, ((7, 1), (9, 4)))
    assert position.before(1) == Position(5, 2, ((7, 1),))
    assert position.before(1).behind(9, 4) == position


def test_states_saved_by_earlier_releases_are_read() -> None:
    position = [{"item": 12, "piece": 3}, {"rows": 1312, "index": 3}, {"rows": 40960, "index": 79}]
    saved = {"version": 1, "stages": ["source of 40 items", "shuffle 9 rows seed 7", "batch"], "epoch": 2}
    saved["position"] = position
    found = load_state(saved, ("source of 40 items", "shuffle 9 rows seed 7", "batch"))
    assert found == (2, Position(12, 3, ((1312, 3), (40960, 79))))
    assert make_state(saved["stages"], *found) == saved


def test_a_state_survives_json() -> None:
    state = make_state(STAGES, 3, Position(1, 2, ((4, 5),)))
    assert load_state(json.loads(json.dumps(state)), STAGES) == (3, Position(1, 2, ((4, 5),)))
    assert len(json.dumps(state)) < 300


def test_a_state_names_its_segment_unless_it_is_the_first() -> None:
    first, later = Position(1, 2, ((4, 5),)), Position(1, 2, ((4, 5),), segment=3)
    state = make_state(STAGES, 0, later)
    assert load_state(json.loads(json.dumps(state)), STAGES) == (0, later)
    assert "segment" not in make_state(STAGES, 0, first)
    assert in_first_segment(state) == make_state(STAGES, 0, first)
    assert saved_segment(state, 4) == 3
    with pytest.raises(CheckpointError, match="of segment 3, but the pipeline has 3 sources"):
        saved_segment(state, 3)


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
    assert pipe.batch(3).plan.signature() == pipe.batch(4).plan.signature()
    assert pipe.shuffle(num_rows=5, seed=1).plan.signature() != pipe.shuffle(num_rows=5, seed=2).plan.signature()
    assert pipe.shuffle(num_rows=5).plan.signature() != pipe.shuffle(num_rows=6).plan.signature()


def test_a_batch_size_may_change_on_resume() -> None:
    pipe = from_source(SyntheticSource([[(10, 0, 0)]]))
    with pipe.batch(3).open(executor="inline") as batches:
        next(batches)
        state = batches.state_dict()
    with pipe.batch(4).open(executor="inline", state=state) as batches:
        assert next(batches)["value"].to_pylist() == [3, 4, 5, 6]
