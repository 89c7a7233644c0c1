"""The table of operators in the documentation."""

import importlib.util
from pathlib import Path

from headrace.features import operators

ROOT = Path(__file__).resolve().parents[3]

SIXTEEN = (
    "cartesian bucketize compute_score enumerate positive_modulus id_list_transform box_cox logit map_id first_x "
    "local_hour hash ngram one_hot clamp sampling"
)


def test_all_operators_of_the_study_and_five_more_are_there() -> None:
    assert set(operators()) == {*SIXTEEN.split(), "fill", "is_null", "standardize", "log1p", "cast"}


def test_the_page_shows_the_operators_as_they_are_declared() -> None:
    spec = importlib.util.spec_from_file_location("write_operator_table", ROOT / "scripts" / "write_operator_table.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    assert page == script.with_table(page), "run: python scripts/write_operator_table.py"


def test_every_operator_has_a_purpose_and_a_definition() -> None:
    for name, operator in operators().items():
        assert operator.purpose, name
        assert operator.__doc__ is not None, name
        assert len(operator.__doc__) > 20, name
