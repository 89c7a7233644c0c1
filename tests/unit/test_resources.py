"""Effective CPUs and memory on machines described as folders."""

from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.resources import (
    ResourceMonitor,
    System,
    effective_cpus,
    effective_memory,
    effective_resources,
    format_bytes,
    parse_bytes,
    read_again,
)

GIB = 1 << 30
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 {root} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
V1_GROUPS = "4:memory:{path}\n3:cpuset:{path}\n2:cpu,cpuacct:{path}\n0::/\n"


class FakeMachine:
    """A machine with 64 CPUs and 256 GiB, 200 of them available; more is said by writing files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment: dict[str, str] = {}
        self.affinity: int | None = 64
        self.rlimits: dict[str, int] = {}
        self.write("/sys/devices/system/cpu/online", "0-63\n")
        self.write("/proc/meminfo", f"MemTotal: {256 << 20} kB\nMemFree: 1 kB\nMemAvailable: {200 << 20} kB\n")
        self.write(
            "/proc/self/status", "Name:\tpython\nVmSize:\t 2097152 kB\nVmData:\t 1048576 kB\nVmRSS:\t 524288 kB\n"
        )

    def write(self, path: str, text: object) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(text))

    def join_v2(self, path: str) -> None:
        self.write("/proc/self/mountinfo", V2_MOUNT)
        self.write("/proc/self/cgroup", f"0::{path}\n")

    def join_v1(self, path: str, *, mount_root: str = "/") -> None:
        self.write("/proc/self/mountinfo", V1_MOUNTS.format(root=mount_root))
        self.write("/proc/self/cgroup", V1_GROUPS.format(path=path))

    @property
    def system(self) -> System:
        return System(
            root=self.root,
            environment=self.environment,
            affinity=lambda: self.affinity,
            rlimits=lambda: self.rlimits,
            cpu_count=lambda: 7,
        )


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def test_without_limits_all_cpus_and_memory_count(machine: FakeMachine) -> None:
    cpus, memory = effective_cpus(machine.system), effective_memory(machine.system)
    assert (cpus.count, cpus.limiting.what) == (64, "machine")
    assert (memory.limit_bytes, memory.available_bytes) == (256 * GIB, 200 * GIB)


def test_without_proc_and_sys_the_interpreter_is_asked(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path / "full")
    machine.root = tmp_path / "empty"
    assert effective_cpus(machine.system).sources[0].count == 7
    assert effective_memory(machine.system).limit_bytes > 0


def test_affinity_below_the_machine_limits(machine: FakeMachine) -> None:
    machine.affinity = 5
    cpus = effective_cpus(machine.system)
    assert (cpus.count, cpus.limiting.what) == (5, "affinity")


def test_v2_quota_of_a_parent_applies(machine: FakeMachine) -> None:
    machine.join_v2("/kubepods/pod1/main")
    machine.write("/sys/fs/cgroup/kubepods/pod1/main/cpu.max", "max 100000\n")
    machine.write("/sys/fs/cgroup/kubepods/pod1/cpu.max", "250000 100000\n")
    cpus = effective_cpus(machine.system)
    assert cpus.count == 2.5
    assert cpus.num_threads == 2
    assert cpus.limiting.where == "/sys/fs/cgroup/kubepods/pod1/cpu.max"


def test_v2_max_is_no_limit(machine: FakeMachine) -> None:
    machine.join_v2("/a")
    machine.write("/sys/fs/cgroup/a/cpu.max", "max 100000\n")
    machine.write("/sys/fs/cgroup/a/memory.max", "max\n")
    assert effective_cpus(machine.system).count == 64
    assert effective_memory(machine.system).limit_bytes == 256 * GIB


def test_less_than_one_cpu_still_runs_one_thread(machine: FakeMachine) -> None:
    machine.join_v2("/a")
    machine.write("/sys/fs/cgroup/a/cpu.max", "50000 100000\n")
    cpus = effective_cpus(machine.system)
    assert (cpus.count, cpus.num_threads) == (0.5, 1)


def test_v2_cpuset_counts_ranges_and_single_cpus(machine: FakeMachine) -> None:
    machine.join_v2("/a")
    machine.write("/sys/fs/cgroup/a/cpuset.cpus.effective", "0-3,8,10-11\n")
    cpus = effective_cpus(machine.system)
    assert (cpus.count, cpus.limiting.what) == (7, "cpuset (cgroup v2)")


def test_v1_quota_is_read_up_the_tree_and_minus_one_is_none(machine: FakeMachine) -> None:
    machine.join_v1("/slice/job")
    machine.write("/sys/fs/cgroup/cpu,cpuacct/slice/job/cpu.cfs_quota_us", "-1\n")
    machine.write("/sys/fs/cgroup/cpu,cpuacct/slice/job/cpu.cfs_period_us", "100000\n")
    assert effective_cpus(machine.system).count == 64
    machine.write("/sys/fs/cgroup/cpu,cpuacct/slice/cpu.cfs_quota_us", "400000\n")
    machine.write("/sys/fs/cgroup/cpu,cpuacct/slice/cpu.cfs_period_us", "100000\n")
    assert effective_cpus(machine.system).count == 4


def test_v1_container_that_sees_host_paths_uses_its_mount_point(machine: FakeMachine) -> None:
    machine.join_v1("/docker/abc", mount_root="/docker/abc")
    machine.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", 8 * GIB)
    machine.write("/sys/fs/cgroup/memory/memory.usage_in_bytes", 3 * GIB)
    assert effective_memory(machine.system).limit_bytes == 8 * GIB
    machine.join_v1("/elsewhere", mount_root="/docker/abc")
    assert effective_memory(machine.system).limit_bytes == 8 * GIB


def test_a_cgroup_above_the_visible_ones_falls_back_to_the_mount_point(machine: FakeMachine) -> None:
    machine.join_v2("/../sibling")
    machine.write("/sys/fs/cgroup/cpu.max", "200000 100000\n")
    machine.write("/sys/fs/sibling/cpu.max", "100000 100000\n")
    assert effective_cpus(machine.system).count == 2


def test_mount_points_with_spaces_are_found(machine: FakeMachine) -> None:
    machine.write("/proc/self/mountinfo", V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/c\\040group"))
    machine.write("/proc/self/cgroup", "0::/a\n")
    machine.write("/sys/fs/c group/a/cpu.max", "300000 100000\n")
    assert effective_cpus(machine.system).count == 3


def test_v1_memory_without_limit_is_ignored(machine: FakeMachine) -> None:
    machine.join_v1("/job")
    machine.write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", 9223372036854771712)
    machine.write("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", GIB)
    assert [source.what for source in effective_memory(machine.system).sources] == ["machine"]


def test_v1_file_cache_counts_as_available(machine: FakeMachine) -> None:
    machine.join_v1("/job")
    machine.write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", 8 * GIB)
    machine.write("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", 7 * GIB)
    machine.write(
        "/sys/fs/cgroup/memory/job/memory.stat",
        f"cache {5 * GIB}\ntotal_inactive_file {3 * GIB}\ntotal_active_file {2 * GIB}\ntotal_dirty {GIB}\n",
    )
    memory = effective_memory(machine.system)
    assert (memory.used_bytes, memory.available_bytes) == (3 * GIB, 5 * GIB)


def test_v2_tightest_limit_up_the_tree_limits_and_high_counts(machine: FakeMachine) -> None:
    machine.join_v2("/pod/main")
    for folder, limit in (("pod", 16), ("pod/main", 12)):
        machine.write(f"/sys/fs/cgroup/{folder}/memory.max", limit * GIB)
        machine.write(f"/sys/fs/cgroup/{folder}/memory.current", 2 * GIB)
    assert effective_memory(machine.system).limit_bytes == 12 * GIB
    machine.write("/sys/fs/cgroup/pod/memory.high", 10 * GIB)
    memory = effective_memory(machine.system)
    assert (memory.limit_bytes, memory.limiting.what) == (10 * GIB, "cgroup v2 high")


def test_the_least_left_need_not_be_under_the_smallest_limit(machine: FakeMachine) -> None:
    machine.join_v2("/pod/main")
    machine.write("/sys/fs/cgroup/pod/main/memory.max", 12 * GIB)
    machine.write("/sys/fs/cgroup/pod/main/memory.current", 2 * GIB)
    machine.write("/sys/fs/cgroup/pod/memory.max", 16 * GIB)
    machine.write("/sys/fs/cgroup/pod/memory.current", 15 * GIB)  # a sibling container's
    memory = effective_memory(machine.system)
    assert (memory.limit_bytes, memory.available_bytes) == (12 * GIB, GIB)


def test_rlimit_leaves_what_the_process_has_not_mapped(machine: FakeMachine) -> None:
    machine.rlimits = {"RLIMIT_AS": 6 * GIB}
    memory = effective_memory(machine.system)
    assert (memory.limiting.what, memory.available_bytes) == ("rlimit", 4 * GIB)


@pytest.mark.parametrize(
    ("variables", "count", "what"),
    [
        ({"SLURM_CPUS_PER_TASK": "6"}, 6, "Slurm, CPUs of this task"),
        ({"SLURM_CPUS_ON_NODE": "32", "SLURM_CPUS_PER_TASK": "4"}, 4, "Slurm, CPUs of this task"),
        ({"KUBERNETES_CPU_LIMIT": "1500m"}, 1.5, "Kubernetes, limits.cpu through the downward API"),
        ({"HEADRACE_CPUS": "3"}, 3, "user"),
        ({"SLURM_CPUS_PER_TASK": "many"}, 64, "machine"),
    ],
)
def test_hints_of_schedulers_count(machine: FakeMachine, variables: dict[str, str], count: float, what: str) -> None:
    machine.environment = variables
    cpus = effective_cpus(machine.system)
    assert (cpus.count, cpus.limiting.what) == (count, what)


def test_memory_hints_of_schedulers_count(machine: FakeMachine) -> None:
    machine.environment = {"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "4"}
    assert effective_memory(machine.system).limit_bytes == 8 * GIB
    machine.environment = {"SLURM_MEM_PER_NODE": "0", "HEADRACE_MEMORY": "4GiB"}
    memory = effective_memory(machine.system)
    assert (memory.limit_bytes, memory.available_bytes) == (4 * GIB, 4 * GIB - GIB // 2)


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_is_read_again_without_looking_for_the_others(machine: FakeMachine, version: int) -> None:
    folder, limit, use = {
        1: ("/sys/fs/cgroup/memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        2: ("/sys/fs/cgroup/job", "memory.max", "memory.current"),
    }[version]
    (machine.join_v1 if version == 1 else machine.join_v2)("/job")
    machine.write(f"{folder}/{limit}", 8 * GIB)
    machine.write(f"{folder}/{use}", GIB)
    before = effective_memory(machine.system).limiting
    machine.write(f"{folder}/{use}", 5 * GIB)
    machine.write(f"{folder}/memory.stat", f"{'total_' if version == 1 else ''}inactive_file {GIB}\n")
    machine.write("/proc/self/mountinfo", "")
    now = read_again(before, machine.system)
    assert (now.what, now.limit_bytes, now.used_bytes) == (before.what, 8 * GIB, 4 * GIB)


def test_the_machine_rlimits_and_hints_are_read_again_by_what_they_count(machine: FakeMachine) -> None:
    machine.rlimits = {"RLIMIT_AS": 6 * GIB, "RLIMIT_DATA": 7 * GIB}
    machine.environment = {"HEADRACE_MEMORY": "4GiB"}
    sources = effective_memory(machine.system).sources
    machine.write("/proc/meminfo", f"MemTotal: {256 << 20} kB\nMemAvailable: {100 << 20} kB\n")
    machine.write("/proc/self/status", "VmSize: 3145728 kB\nVmData: 2097152 kB\nVmRSS: 1048576 kB\n")
    again = {(limit.what, limit.where): read_again(limit, machine.system) for limit in sources}
    assert {where: limit.used_bytes for (_, where), limit in again.items()} == {
        "/proc/meminfo": 156 * GIB,
        "RLIMIT_AS": 3 * GIB,
        "RLIMIT_DATA": 2 * GIB,
        "HEADRACE_MEMORY": GIB,
    }
    assert {key: limit.limit_bytes for key, limit in again.items()} == {
        (limit.what, limit.where): limit.limit_bytes for limit in sources
    }


def test_child_processes_count_with_what_they_share_counted_once(machine: FakeMachine) -> None:
    machine.environment = {"HEADRACE_MEMORY": "4GiB"}
    machine.write("/proc/self/task/1/children", "20 21 ")
    machine.write("/proc/self/task/2/children", "")
    machine.write("/proc/20/task/20/children", "30 ")
    for process, pss in (("self", 400), ("20", 30), ("30", 7)):
        machine.write(f"/proc/{process}/smaps_rollup", f"Rss: 999999 kB\nPss: {pss << 10} kB\n")
    machine.write("/proc/21/status", f"VmRSS: {5 << 10} kB\n")  # the kernel does not show another user's
    user = effective_memory(machine.system).limiting
    assert (user.what, user.used_bytes) == ("user", (400 + 30 + 7 + 5) << 20)
    machine.write("/proc/20/task/20/children", "")
    assert read_again(user, machine.system).used_bytes == (400 + 30 + 5) << 20


def test_wrong_own_variable_is_an_error_that_names_it(machine: FakeMachine) -> None:
    machine.environment = {"HEADRACE_CPUS": "all"}
    with pytest.raises(ConfigError, match="HEADRACE_CPUS: given 'all', expected a number of CPUs above 0"):
        effective_cpus(machine.system)
    machine.environment = {"HEADRACE_MEMORY": "plenty"}
    with pytest.raises(ConfigError, match="HEADRACE_MEMORY: given 'plenty', expected bytes or a size"):
        effective_memory(machine.system)


def test_monitor_tells_a_resize_once_and_ignores_use(machine: FakeMachine) -> None:
    machine.join_v2("/job")
    machine.write("/sys/fs/cgroup/job/cpu.max", "400000 100000\n")
    machine.write("/sys/fs/cgroup/job/memory.max", 8 * GIB)
    machine.write("/sys/fs/cgroup/job/memory.current", GIB)
    monitor = ResourceMonitor(lambda: effective_resources(machine.system))
    machine.write("/sys/fs/cgroup/job/memory.current", 2 * GIB)
    assert monitor.poll() is None
    machine.write("/sys/fs/cgroup/job/cpu.max", "200000 100000\n")
    machine.write("/sys/fs/cgroup/job/memory.max", 4 * GIB)
    change = monitor.poll()
    assert change is not None
    assert change.reason == (
        "CPUs 4 -> 2 (cgroup v2 quota: /sys/fs/cgroup/job/cpu.max); "
        "memory 8 GiB -> 4 GiB (cgroup v2 max: /sys/fs/cgroup/job/memory.max)"
    )
    assert (change.before.cpus.count, change.after.cpus.count) == (4, 2)
    assert monitor.poll() is None


def test_this_machine_gives_sensible_numbers() -> None:
    resources = effective_resources()
    assert 0 < resources.cpus.count <= 4096
    assert 1 << 26 < resources.memory.limit_bytes < 1 << 60
    assert 0 <= resources.memory.available_bytes <= resources.memory.limit_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4GiB", 4 * GIB),
        ("4g", 4 * GIB),
        ("4Gi", 4 * GIB),
        ("500 MB", 500_000_000),
        ("1.5k", 1536),
        ("7B", 7),
        (12, 12),
    ],
)
def test_sizes_are_parsed(text: str | int, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "4 apples", "1e3", True, -5, None])
def test_wrong_sizes_are_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="budget: given"):
        parse_bytes(text, where="budget")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (300 * GIB, "300 GiB"), (4 * GIB, "4 GiB")]
)
def test_sizes_are_written_for_people(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text
