"""`headrace placement` on a small generated log: its tables, its files, and its errors."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.errors import ConfigError
from headrace.logs.generate import GenerateConfig, generate_logs


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placement") / "logs"
    generate_logs(GenerateConfig(rows=3000, windows=2, users=200, items=300), folder)
    return folder


def placement(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["placement", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_tables_and_the_json_of_two_trainers(logs: Path, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    text = placement(logs, "--trainers", 2, "--batch-size", 128, "--window", 5, "--json", path)
    assert "11 steps of 256 samples at 2 trainers" in text
    assert "184 samples after the last whole step left out" in text
    found = json.loads(path.read_text())
    policies = {result["policy"]: result for result in found["policies"]}
    assert list(policies) == ["none", "lru", "bagpipe", "herald", "lookahead", "lookahead_placed"]
    assert all(f"\n{name} " in text for name in policies)
    assert all(result["stale_reads_total"] == result["lost_updates_total"] == 0 for result in policies.values())
    assert policies["lookahead_placed"]["bytes_total"] < policies["lookahead"]["bytes_total"]
    assert policies["lookahead"]["bytes_total"] < policies["none"]["bytes_total"]
    assert sum(policies["none"]["bytes_by_step"]) == policies["none"]["bytes_total"]
    assert found["curve"]["fewest_misses"][-1] <= found["curve"]["lru_misses"][0]
    assert f"uses up to {found['window_rows']:,} rows" in text


def test_caches_in_rows_and_bytes_and_policies_that_do_not_fit(logs: Path, tmp_path: Path) -> None:
    page = tmp_path / "curve.html"
    options = ["--batch-size", 64, "--steps", 20, "--policy", "bagpipe", "--policy", "lookahead", "--plot", page]
    text = placement(logs, *options, "--cache", "2000", "--cache", "50KiB")
    lines = [line.split() for line in text.splitlines() if line.startswith(("bagpipe", "lookahead"))]
    assert [line[:2] for line in lines] == [["bagpipe", "2,000"], ["lookahead", "2,000"], ["lookahead", "581"]]
    assert "not replayed: bagpipe: needs more than " in text
    assert "<svg" in page.read_text()


def test_a_job_is_read_with_its_features_and_tables(logs: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"run: run\ndata: {{path: {logs}, schema: {logs / 'schema.yaml'}}}\nfeatures: {{sparse: {{item: []}}}}\n"
        "embeddings: {default: {kind: hashed, num_embeddings: 8, optimizer: {kind: adam}}}\n"
        "model: {kind: dcnv2, embedding_dim: 4}\n"
    )
    text = placement(job, "--batch-size", 100, "--steps", 3, "--policy", "none")
    assert "3 steps of 100 samples at 1 trainer, 8 distinct rows a step, 8 in all" in text
    assert "a row has 16 bytes and 32 of optimizer state" in text
    assert not (tmp_path / "run").exists()
    arguments = (job, "--batch-size", 100, "--steps", 3, "--policy", "lookahead")
    (usual,), (scratch,) = (
        [line.split() for line in placement(*arguments, *flags).splitlines() if line.startswith("lookahead")]
        for flags in ((), ("--from-scratch",))
    )
    assert usual[:5] == ["lookahead", "no", "limit", "181", "B"]  # 8 rows of 68 bytes of values, state and metadata
    assert scratch[:5] == ["lookahead", "no", "limit", "0", "B"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--policy", "lokahead"), "--policy: given policy 'lokahead', expected one of"),
        (("--policy", "os:getcwd"), "--policy: given os:getcwd, expected a subclass of"),
        (("--cache", "0"), "--cache: given 0, expected at least one row"),
        (("--cache", "many"), "--cache: given 'many', expected bytes or a size"),
        (("--cache", "3", "--batch-size", "64"), "cache: given 3 rows, expected at least"),
        (("--batch-size", "4000"), "has 3,000 rows, expected at least 4,000, a global batch"),
        (
            ("--trainers", "2", "--policy", "belady", "--batch-size", "64"),
            "belady: is a limit for one trainer, given 2",
        ),
    ],
)
def test_errors_name_the_option_and_what_was_expected(logs: Path, arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        placement(logs, *arguments)
    assert text in str(caught.value)


def test_the_dimension_of_a_job_is_in_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected model\.embedding_dim in the job file"):
        placement(tmp_path / "job.yaml", "--embedding-dim", 8)
