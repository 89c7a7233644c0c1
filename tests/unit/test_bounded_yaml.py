"""YAML that is small to write and large or deep to read is refused at once, with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config import read_yaml
from headrace.errors import ConfigError


def bomb(levels: int, copies: int = 9) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * copies)}]" for n in range(1, levels)]
    return "\n".join(lines)


MERGES = "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(12), r"line 6: not YAML: its aliases stand for more than 100,000 values"),
        (MERGES, r"line \d: not YAML: its aliases stand for more than 100,000 values"),
        ("a: &a [*a]", "line 1: not YAML: an alias inside the value it stands for"),
        ("[" * 100_000, "line 1: not YAML: nested more than 64 levels deep"),
        ("a: " + "{b: " * 5_000 + "1" + "}" * 5_000, "nested more than 64 levels deep"),
        ("- " * 5_000 + "x", "nested more than 64 levels deep"),
        ("\n".join(" " * n + "a:" for n in range(500)), r"line 6\d: not YAML: nested more than 64 levels deep"),
        ("until: 2024-13-45", "not YAML: month must be in 1..12"),
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
