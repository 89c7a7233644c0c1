"""What doctor finds and warns of."""

import dataclasses
import errno
import json
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from headrace.cli.doctor import doctor
from headrace.observe import environment
from headrace.observe.environment import Environment, MatrixSpeed, examine, find_warnings, measure_matrix_speed
from headrace.resources import CpuLimit, Cpus, Memory, MemoryLimit, System

GIB = 1 << 30
HEALTHY = Environment(
    cpus=Cpus(4.0, (CpuLimit("machine", 64, "/sys"), CpuLimit("cgroup v2 quota", 4.0, "/sys/fs/cgroup/cpu.max"))),
    memory=Memory((MemoryLimit("machine", 64 * GIB, 10 * GIB, "/proc/meminfo"),)),
    threads={"torch": 4, "Numba": 4, "Arrow": 4, "Arrow I/O": 8},
    flags=("avx2",),
    matrix_speed=MatrixSpeed(768, 100.0, 300.0),
    versions={"Python": "3.11.7"},
    disks=(("working folder", "/job", 100 * GIB, 200 * GIB), ("temporary folder", "/tmp", 9 * GIB, 9 * GIB)),
    shm_bytes=8 * GIB,
    processor="Test",
    kernels=Path("/home/somebody/.cache/headrace/kernels"),
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Typer:
    speed = MatrixSpeed(768, 100.0, 300.0)
    monkeypatch.setattr(environment, "measure_matrix_speed", lambda: speed)
    app = Typer(pretty_exceptions_enable=False)
    app.command()(doctor)
    return app


def test_a_healthy_machine_has_no_warning() -> None:
    assert find_warnings(HEALTHY) == []


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"threads": {"torch": 64}}, "torch has 64 threads for 4 effective CPUs; set OMP_NUM_THREADS=4"),
        ({"threads": {"Numba": 5}}, "Numba has 5 threads for 4 effective CPUs; set NUMBA_NUM_THREADS=4"),
        ({"shm_bytes": 64 << 20}, "/dev/shm has 64 MiB; PyTorch's DataLoader workers need more"),
        ({"disks": (("working folder", "/job", GIB, GIB), HEALTHY.disks[1])}, "working folder /job: 1 GiB free"),
        ({"disks": HEALTHY.disks[:1]}, "no writable temporary folder; set TMPDIR"),
        ({"matrix_speed": MatrixSpeed(768, 100.0, 20.0)}, "bf16 matrix products are 5.0x slower than fp32 here"),
        ({"memory": Memory((MemoryLimit("user", GIB, GIB, "X"),))}, "only 0 B of memory are available"),
    ],
)
def test_what_stands_in_the_way_is_warned_of(change: dict[str, object], warning: str) -> None:
    warnings = find_warnings(dataclasses.replace(HEALTHY, **change))  # type: ignore[arg-type]
    assert len(warnings) == 1
    assert warnings[0].startswith(warning)


def test_processor_flags_and_limits_are_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "measure_matrix_speed", lambda: MatrixSpeed(768, None, None))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("model name\t: Xeon\nflags\t\t: fpu avx2 avx512f amx_bf16 sse\n")
    found = examine(System(root=tmp_path, environment={"HEADRACE_CPUS": "0.5"}))
    assert (found.processor, found.flags) == ("Xeon", ("amx_bf16", "avx512f", "avx2"))
    assert found.cpus.limiting.where == "HEADRACE_CPUS"
    assert "torch" in found.versions
    json.dumps(found.to_dict())


def test_a_machine_without_a_temporary_folder_is_examined_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(environment, "measure_matrix_speed", lambda: MatrixSpeed(768, None, None))
    monkeypatch.setattr(environment.tempfile, "gettempdir", none)
    assert [what for what, *_ in examine().disks] == ["working folder"]


def test_matrix_speed_is_measured_in_both_precisions() -> None:
    speed = measure_matrix_speed(size=64, seconds=0.01)
    assert speed.fp32 is not None
    assert speed.fp32 > 0


def test_the_command_prints_every_section(command: Typer) -> None:
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0, result.output
    for text in ("effective", "<- limits", "affinity", "torch", "bf16", "free in working folder", "versions: Python"):
        assert text in result.stdout


def test_the_command_prints_json(command: Typer) -> None:
    result = CliRunner().invoke(command, ["--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["cpus"]["count"] > 0
    assert report["bf16"]["bf16"] == 300.0
    assert {"machine"} <= {source["what"] for source in report["memory"]["sources"]}


def test_kernels_that_cannot_be_kept_or_run_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no writable folder" in find_warnings(dataclasses.replace(HEALTHY, kernels=None))[0]
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert find_warnings(HEALTHY) == ["NUMBA_DISABLE_JIT is set: kernels cannot run; unset it"]
