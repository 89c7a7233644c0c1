"""YAML that is small to write and large or deep to read is refused at once, with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config import Config, read_yaml
from headrace.errors import ConfigError


def bomb(levels: int, copies: int = 9) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * copies)}]" for n in range(1, levels)]
    return "\n".join(lines)


MERGES = "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(12), r"line 6: not YAML: its aliases expand to more than 100,000 values"),
        (MERGES, r"line \d: not YAML: its aliases expand to more than 100,000 values"),
        ("a: &a [*a]", "line 1: not YAML: an alias inside the value that it refers to"),
        ("[" * 100_000, "line 1: not YAML: nested more than 64 levels deep"),
        ("a: " + "{b: " * 5_000 + "1" + "}" * 5_000, "nested more than 64 levels deep"),
        ("- " * 5_000 + "x", "nested more than 64 levels deep"),
        ("\n".join(" " * n + "a:" for n in range(500)), r"line 6\d: not YAML: nested more than 64 levels deep"),
        ("until: !!timestamp 2024-13-45", "not YAML: month must be in 1..12"),
        (f"seed: {'9' * 5_000}", "not YAML: Exceeds the limit"),
        ("seed: !!int x", "not YAML: invalid literal for int"),
    ],
)
def test_what_would_fill_memory_or_the_stack_is_refused_with_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(tmp_path / "job.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'job.yaml'}:")
    assert "\n" not in str(caught.value)


def test_aliases_merges_and_long_files_are_read_as_before(tmp_path: Path) -> None:
    text = "base: &base {lr: 0.1, eps: 1}\nmine: {<<: *base, lr: 0.2}\ncopies: [*base, *base]\n"
    (tmp_path / "job.yaml").write_text(text + "columns:\n" + "".join(f"- {{name: c{n}}}\n" for n in range(3_000)))
    values = read_yaml(tmp_path / "job.yaml")
    assert values["mine"] == {"lr": 0.2, "eps": 1}
    assert values["copies"] == [{"lr": 0.1, "eps": 1}] * 2
    assert len(values["columns"]) == 3_000


def read(folder: Path, text: str) -> object:
    (folder / "job.yaml").write_text(text)
    return read_yaml(folder / "job.yaml")


@pytest.mark.parametrize(
    ("text", "second", "key", "first"),
    [
        ("run: a\ndata: {path: b}\nrun: c\n", 3, "run", 1),
        ("training:\n  threads: 2\n\ntraining: {batch_size: 32}\n", 4, "training", 1),
        ("columns:\n- name: a\n  type: int64\n  name: b\n", 4, "name", 2),
        ("a: {x: 1, x: 1}", 1, "x", 1),
        ("a: 1\n'a': 2", 2, "a", 1),
        ("b: &b {x: 1}\na:\n  <<: *b\n  <<: *b\n", 4, "<<", 3),
        ("? a\n: 1\n? a\n: 2\n", 3, "a", 1),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_both_lines(
    tmp_path: Path, text: str, second: int, key: str, first: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    file = tmp_path / "job.yaml"
    assert str(caught.value) == f"{file}: line {second}: the key '{key}' is given twice, first on line {first}"


@pytest.mark.parametrize("text", ["010", "-007", "0_1", "09", "00"])
def test_a_number_that_begins_with_0_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"line 2: given {text}, expected a number without a leading 0"):
        read(tmp_path, f"run: a\nworkers: {text}\n")


@pytest.mark.parametrize(
    "text", ["no", "yes", "on", "off", "y", "NO", "1:30", "1:30:00", "1:30.5", "2024-01-01", "2024-01-01 10:00:00", "="]
)
def test_words_times_and_dates_are_text(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"{text}: [{text}]") == {text: [text]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("-0", 0), ("12", 12), ("1_000", 1000), ("0x1F", 31), ("0b11", 3), ("0.5", 0.5), ("-.5", -0.5),
        ("1.5e-3", 0.0015), ("1_000.5", 1000.5), (".inf", float("inf")), ("true", True), ("False", False),
        ("~", None), ("null", None), ("'010'", "010"),
    ],
)  # fmt: skip
def test_numbers_truth_and_null_are_what_they_look_like(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, f"a: {text}")["a"]  # type: ignore[index]
    assert (found, type(found)) == (value, type(value))


def test_sixty_four_levels_are_read_and_one_more_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("[" * 64 + "]" * 64)
    assert isinstance(read_yaml(tmp_path / "deep.yaml"), list)
    (tmp_path / "deep.yaml").write_text("[" * 65 + "]" * 65)
    with pytest.raises(ConfigError, match="nested more than 64 levels deep"):
        read_yaml(tmp_path / "deep.yaml")


class Plain(Config):
    rate: float
    on: bool
    name: str


def test_fields_still_accept_short_notations_of_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("{rate: 1e-3, on: yes, name: no}")
    assert Plain.from_yaml(tmp_path / "plain.yaml") == Plain(rate=0.001, on=True, name="no")


@pytest.mark.parametrize(
    "name", ["no", "010", "1:30", "2024-01-01", "1e3", "0o17", "=", "<<", "~", "1_0", "0x1", "a\nb"]
)
def test_what_a_config_writes_is_read_the_same(tmp_path: Path, name: str) -> None:
    config = Plain(rate=0.00001, on=False, name=name)
    (tmp_path / "plain.yaml").write_text(config.to_yaml())
    assert Plain.from_yaml(tmp_path / "plain.yaml") == config
