"""Configs: one clear line for each mistake, with the key as the user wrote it."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BeforeValidator, Field, model_validator

from headrace.config import Config, read_yaml, whole_number_or
from headrace.errors import ConfigError


class Small(Config):
    kind: Literal["small"] = "small"
    width: int = Field(default=1, ge=1)


class Large(Config):
    kind: Literal["large"] = "large"
    widths: tuple[int, ...] = ()


class Column(Config):
    name: str


class Table(Config):
    columns: tuple[Annotated[Column, BeforeValidator(lambda value: value)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_checked_as_a_whole(self) -> "Table":
        return self


class Job(Config):
    model: Annotated[Small | Large, Field(discriminator="kind")] = Small()
    table: Table | str | None = Field(default=None, alias="schema")
    models: dict[str, Large] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"modle": {}}, "modle: unknown key, expected one of: model, schema, models"),
        ({"model": {"kind": "large", "width": 3}}, "model.width: unknown key, expected one of: kind, widths"),
        ({"model": {"kind": "small", "width": 0}}, "model.width: given 0, expected: greater than or equal to 1"),
        ({"model": {"kind": "large", "widths": [1, "x"]}}, "model.widths.1: given 'x', expected: a valid integer"),
        ({"models": {"a": {"widht": 1}}}, "models.a.widht: unknown key, expected one of: kind, widths"),
        ({"schema": {"columns": [{"nmae": "a", "name": "b"}]}}, "schema.columns.0.nmae: unknown key, expected one of"),
        ({"schema": {}}, "schema.columns: missing"),
        ([], "given list, expected a mapping of keys to values"),
    ],
)
def test_a_mistake_names_file_key_given_and_expected(values: object, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Job.from_dict(values, where="job.yaml")
    assert str(caught.value).startswith(f"job.yaml: {text}")
    assert "\n" not in str(caught.value)


def test_more_mistakes_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"\(and \d more\)$"):
        Job.from_dict({"schema": 1.5, "models": 2}, where="job.yaml")


def test_what_is_no_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("run: a\nb: [\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: line 3: not YAML"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"b\.yaml: no such file"):
        read_yaml(tmp_path / "b.yaml")


def test_a_config_written_as_yaml_reads_back_the_same(tmp_path: Path) -> None:
    job = Job.from_dict({"model": {"kind": "large", "widths": [3]}, "schema": {"columns": [{"name": "a"}]}}, where="")
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    assert Job.from_yaml(tmp_path / "job.yaml") == job


class Rates(Config):
    rate: float
    rounds: int = 1


def test_all_unknown_keys_are_named_with_the_keys_most_like_them_before_what_is_missing() -> None:
    with pytest.raises(ConfigError) as caught:
        Rates.from_dict({"rat": 1, "rouds": 2, "other": 3}, where="job.yaml")
    known = "unknown key, expected one of: rate, rounds"
    assert str(caught.value) == (
        f"job.yaml: rat: {known} (did you mean rate?); rouds: {known} (did you mean rounds?); other: {known}"
    )


class Worded(Config):
    size: Annotated[int | Literal["auto"], whole_number_or("auto", at_least=1)] = "auto"


@pytest.mark.parametrize("value", ["auto", 1, 4096])
def test_a_number_or_a_word_is_taken_as_given(value: object) -> None:
    assert Worded.from_dict({"size": value}, where="job").size == value


@pytest.mark.parametrize("value", [0, "Auto", 1.5, True, None, "12"])
def test_anything_but_the_number_or_the_word_is_one_line(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Worded.from_dict({"size": value}, where="job")
    assert str(caught.value) == f"job: size: given {value!r}, expected: a whole number of at least 1, or auto"


def test_changed_fields_are_those_with_other_values_than_their_defaults() -> None:
    assert Job(model=Small(), models={}).changed() == {}
    assert Large(kind="large", widths=(1,)).changed() == {"widths": (1,)}
    assert Column(name="a").changed() == {"name": "a"}


class Limits(Config):
    limit: int | None = Field(default=3, alias="most")
    unit: str | None = None


class Limited(Config):
    limits: tuple[Limits, ...] = (Limits(),)


@pytest.mark.parametrize("given", [{}, {"most": None}, {"most": 3, "unit": "s"}])
def test_a_saved_config_keeps_null_where_it_is_not_the_default(given: dict[str, object], tmp_path: Path) -> None:
    config = Limited.from_dict({"limits": [given]}, where="test")
    (tmp_path / "saved.yaml").write_text(config.to_yaml())
    assert Limited.from_yaml(tmp_path / "saved.yaml") == config
