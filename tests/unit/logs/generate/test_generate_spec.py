"""The config of a synthetic log: how rows are split into windows, what columns there are, mistakes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ConfigError
from headrace.logs.generate import GenerateConfig


@given(rows=st.integers(1, 10_000), windows=st.integers(1, 50))
def test_windows_share_the_rows_evenly_and_leave_no_gap(rows: int, windows: int) -> None:
    if windows > rows:
        return
    config = GenerateConfig(rows=rows, windows=windows)
    sizes = [config.window_rows(w) for w in range(windows)]
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1
    assert [config.window_first_row(w) for w in range(windows)] == [sum(sizes[:w]) for w in range(windows)]


def test_schema_names_every_column_by_its_part() -> None:
    config = GenerateConfig(user_segments=(3,), item_categories=(4, 5), user_dense=1, item_dense=2, id_lists=2)
    schema = config.log_schema()
    assert [column.name for column in schema.ids] == ["user", "segment_0", "item", "category_0", "category_1"]
    assert [column.name for column in schema.dense] == ["user_x0", "item_x0", "item_x1"]
    assert [(column.name, column.max_length) for column in schema.id_lists] == [("history", 50), ("list_1", 50)]
    assert (schema.session_id, schema.row_id, schema.labels[0].name) == ("session", "row", "click")


def test_a_log_without_lists_or_dense_columns_is_possible() -> None:
    assert GenerateConfig(id_lists=0).list_names == ()
    assert GenerateConfig(user_dense=0, item_dense=0).dense_names == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": 2, "windows": 3}, "windows must not exceed rows"),
        ({"change_ratio": 1.5}, "change_ratio: given 1.5"),
        ({"rows_per_session": 0.5}, "rows_per_session: given 0.5"),
        ({"colour": 1}, "colour: unknown key"),
        ({"user_segments": [1]}, "user_segments.0: given 1"),
    ],
)
def test_mistakes_name_the_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerateConfig.from_dict(values, where="spec.yaml")
