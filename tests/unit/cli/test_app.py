"""The command line as a whole: every command has an example, and the page on the commands names every option."""

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from headrace.cli import app as app_module
from headrace.cli.app import app, main
from headrace.errors import DataError

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "command-line.md"


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands with their path, those of sub-commands included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def section(path: tuple[str, ...]) -> str:
    """What the page says of a command."""
    _, heading, rest = PAGE.read_text(encoding="utf-8").partition(f"\n## headrace {' '.join(path)}\n")
    assert heading, f"docs/command-line.md has no section on headrace {' '.join(path)}"
    return rest.partition("\n## ")[0]


def options(command: Any) -> list[str]:
    return [name for option in command.params for name in option.opts if name.startswith("--") and name != "--help"]


def test_the_commands_are_those_of_the_main_job() -> None:
    names = {path[0] for path in COMMANDS}
    assert names >= {"demo", "generate", "import", "inspect", "train", "evaluate", "predict", "replay", "export"}
    assert "doctor" in names


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_says_what_a_command_does_and_has_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert f"Example: headrace {' '.join(path)}" in text
    assert all(option.help for option in COMMANDS[path].params if option.name != "help"), "an option without help"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_page_shows_every_command_with_every_option(path: tuple[str, ...]) -> None:
    text = section(path)
    assert f"    headrace {' '.join(path)}" in text
    missing = [option for option in options(COMMANDS[path]) if f"`{option}`" not in text]
    assert not missing


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    wanted = runpy.run_path(str(ROOT / "scripts" / "command_reference.py"))["with_reference"](text)
    assert text == wanted, "run: python scripts/command_reference.py"


def test_the_commands_on_the_page_are_understood() -> None:
    """Every command line on the page parses; none of them is run."""
    lines = re.findall(r"^    headrace (.*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= len(COMMANDS)
    for line in lines:
        words = shlex.split(line, comments=True)
        path = next(tuple(words[:length]) for length in (1, 2) if tuple(words[:length]) in COMMANDS)
        with COMMANDS[path].make_context("headrace", words[len(path) :]):
            pass


def run(monkeypatch: pytest.MonkeyPatch, error: Exception, *arguments: str) -> int:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(app_module, "app", fail)
    monkeypatch.setattr("sys.argv", ["headrace", *arguments])
    with pytest.raises(SystemExit) as exited:
        main()
    assert isinstance(exited.value.code, int)
    return exited.value.code


def test_an_error_of_several_lines_is_printed_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, DataError("a.parquet:\n  row 3"), "train") == 2
    assert capsys.readouterr().err == "headrace: a.parquet: row 3\n"


def test_an_error_of_any_length_is_printed_with_its_beginning_and_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, DataError(f"a.parquet: {'x' * 9_000}; rewrite it"), "train") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("headrace: a.parquet: xxx")
    assert printed.endswith("xxx; rewrite it\n")
    assert len(printed) < 2_000


def test_an_error_of_the_system_names_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, PermissionError(13, "Permission denied", "/logs/a.parquet"), "train") == 2
    assert capsys.readouterr().err == "headrace: /logs/a.parquet: Permission denied\n"


def test_a_name_that_the_locale_cannot_write_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = UnicodeEncodeError("ascii", "run-\u00fc", 4, 5, "ordinal not in range(128)")
    with pytest.raises(UnicodeEncodeError):  # where UTF-8 is the encoding it is a mistake of ours
        run(monkeypatch, raised, "train")
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    assert run(monkeypatch, raised, "train") == 2
    printed = capsys.readouterr().err
    assert printed == "headrace: 'run-\\xfc': cannot be encoded in the locale's encoding, ascii; set PYTHONUTF8=1\n"


def test_a_working_folder_that_was_deleted_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("os.getcwd", gone)
    assert run(monkeypatch, ZeroDivisionError(), "doctor") == 2
    assert capsys.readouterr().err == "headrace: the working folder was deleted; change to an existing one\n"


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, ZeroDivisionError(), "train")


def test_debug_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--debug", "train"], ["train", "--debug"]):
        with pytest.raises(DataError):
            run(monkeypatch, DataError("a"), *arguments)


def test_version_and_unknown_commands() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("headrace 0.")
    unknown = CliRunner().invoke(app, ["trian"])
    assert unknown.exit_code == 2
    assert "train" in unknown.output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("headrace tr", ["train"]),
        ("headrace import ", ["csv", "jsonl", "criteo", "clicks"]),
        ("headrace train --u", ["--until"]),
    ],
)
def test_the_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, found: list[str]
) -> None:
    monkeypatch.setenv("_HEADRACE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    monkeypatch.setattr("sys.argv", ["headrace"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 0
    assert capsys.readouterr().out.split() == found


def test_the_page_says_how_to_turn_completion_on() -> None:
    assert "headrace --install-completion" in PAGE.read_text(encoding="utf-8")
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout
