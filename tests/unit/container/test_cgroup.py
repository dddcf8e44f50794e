from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nanoagent.common.units import MIB
from nanoagent.container import cgroup
from nanoagent.container.cgroup import ControlGroup, ControlGroupV1, ControlGroupV2, MemoryUse, RunMeter

# Recorded: Debian 12 with Docker 20.10 and cgroup v1, the unified hierarchy mounted beside it and empty.
V1_CGROUP = """\
9:name=systemd:/docker/4c1f
8:pids:/docker/4c1f
7:blkio:/docker/4c1f
6:freezer:/docker/4c1f
5:devices:/docker/4c1f
4:memory:/docker/4c1f
3:cpuset:/docker/4c1f
2:cpuacct:/docker/4c1f
1:cpu:/docker/4c1f
0::/
"""
V1_MOUNTS = """\
23 1 0:21 / /sys rw,relatime - sysfs sysfs rw
31 23 0:28 / {root} rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / {root}/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / {root}/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / {root}/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / {root}/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / {root}/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / {root}/unified rw,relatime - cgroup2 cgroup2 rw
"""
# As systemd has it since version 247, with Docker's systemd driver.
V2_CGROUP = "0::/system.slice/docker-4c1f.scope\n"
V2_MOUNTS = """\
24 1 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
30 24 0:26 / {root} rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
"""
# CentOS 7 and others join controllers in one mount.
JOINED_MOUNTS = "32 31 0:29 / {root}/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct\n"

V1_FILES = {
    "memory/docker/4c1f": {
        "memory.usage_in_bytes": f"{50 * MIB}\n",
        "memory.max_usage_in_bytes": f"{80 * MIB}\n",
        "memory.limit_in_bytes": f"{128 * MIB}\n",
        "memory.memsw.limit_in_bytes": f"{128 * MIB}\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "memory.stat": f"cache 999\nshmem 111\nrss 5\ntotal_cache {30 * MIB}\ntotal_shmem {10 * MIB}\n",
    },
    "cpu/docker/4c1f": {"cpu.cfs_quota_us": "100000\n", "cpu.shares": "1024\n"},
    "pids/docker/4c1f": {"pids.events": "max 7\n"},
}
V2_FILES = {
    "system.slice/docker-4c1f.scope": {
        "memory.current": f"{50 * MIB}\n",
        "memory.peak": f"{80 * MIB}\n",
        "memory.max": f"{128 * MIB}\n",
        "memory.swap.max": "max\n",
        "memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 3\noom_group_kill 0\n",
        "memory.stat": f"anon 5\nfile {30 * MIB}\nkernel 1\nshmem {10 * MIB}\nfile_mapped 0\n",
        "cpu.max": "max 100000\n",
        "cpu.weight": "100\n",
        "pids.events": "max 7\n",
    }
}


def lay_out(root: Path, files: dict[str, dict[str, str]]) -> None:
    for folder, contents in files.items():
        (root / folder).mkdir(parents=True)
        for name, text in contents.items():
            (root / folder / name).write_text(text)


def machine(root: Path, pid_cgroup: str, mounts: str, files: dict[str, dict[str, str]]) -> Path:
    """A /proc with a process 42, and the control groups that it speaks of; returns the /proc."""
    proc = root / "proc"
    (proc / "42").mkdir(parents=True)
    (proc / "self").mkdir()
    (proc / "42/cgroup").write_text(pid_cgroup)
    (proc / "self/mountinfo").write_text(mounts.format(root=root / "cgroup"))
    lay_out(root / "cgroup", files)
    return proc


@pytest.fixture
def v1(tmp_path: Path) -> ControlGroupV1:
    group = cgroup.find(42, machine(tmp_path, V1_CGROUP, V1_MOUNTS, V1_FILES))
    assert isinstance(group, ControlGroupV1)
    return group


@pytest.fixture
def v2(tmp_path: Path) -> ControlGroupV2:
    group = cgroup.find(42, machine(tmp_path, V2_CGROUP, V2_MOUNTS, V2_FILES))
    assert isinstance(group, ControlGroupV2)
    return group


@pytest.fixture(params=["v1", "v2"])
def group(request: pytest.FixtureRequest) -> ControlGroup:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, ControlGroup)
    return found


# --- finding it


def test_the_paths_of_all_controllers_are_read_from_a_v1_process():
    paths = cgroup.controllers_of(V1_CGROUP)
    assert (paths["memory"], paths["pids"], paths[""]) == ("/docker/4c1f", "/docker/4c1f", "/")


def test_the_one_path_is_read_from_a_v2_process():
    assert cgroup.controllers_of(V2_CGROUP) == {"": "/system.slice/docker-4c1f.scope"}


def test_a_path_may_contain_colons():
    assert cgroup.controllers_of("0::/a:b:c\n") == {"": "/a:b:c"}


def test_mounts_of_joined_controllers_are_found_under_each_name():
    mounts = cgroup.mounts_of(JOINED_MOUNTS.format(root="/cg"))
    assert mounts["cpu"] == mounts["cpuacct"] == Path("/cg/cpu,cpuacct")


def test_optional_fields_of_a_mount_do_not_confuse():
    assert cgroup.mounts_of(V2_MOUNTS.format(root="/cg")) == {"": Path("/cg")}


def test_a_hybrid_machine_is_read_by_v1(v1):
    assert v1.memory.parts[-3:] == ("memory", "docker", "4c1f")


def test_a_unified_machine_is_read_by_v2(v2):
    assert v2.folder.name == "docker-4c1f.scope"


def test_a_process_that_is_gone_has_no_group(tmp_path):
    assert cgroup.find(43, machine(tmp_path, V2_CGROUP, V2_MOUNTS, V2_FILES)) is None


def test_a_group_that_cannot_be_seen_is_none(tmp_path):
    assert cgroup.find(42, machine(tmp_path, V2_CGROUP, V2_MOUNTS, {})) is None


def test_this_very_process_has_a_group():
    assert cgroup.find(os.getpid()) is not None


# --- reading it


def test_counters_are_read(group):
    assert group.usage_bytes() == 50 * MIB
    assert group.peak_bytes() == 80 * MIB
    assert group.oom_kills() == 3
    assert group.refused_processes() == 7


def test_the_present_limit_is_read(group):
    assert group.memory_limit() == 128 * MIB


def test_no_limit_is_a_very_large_one(v2):
    (v2.folder / "memory.max").write_text("max\n")
    assert v2.memory_limit() > 2**60


def test_page_cache_is_files_without_tmpfs(group):
    assert group.page_cache_bytes() == 20 * MIB
    assert group.cache_bytes() == (20 * MIB, 10 * MIB)


def test_an_old_kernel_that_counts_no_kills_has_none(v1):
    (v1.memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
    assert v1.oom_kills() == 0


def test_a_group_that_is_gone_is_an_os_error(group):
    folder = group.memory if isinstance(group, ControlGroupV1) else group.folder
    for file in folder.iterdir():
        file.unlink()
    group.close()  # what is open says ENODEV when a real group goes, which plain files cannot play
    with pytest.raises(OSError, match="No such file"):
        group.usage_bytes()


# --- limits


@dataclass
class Writes:
    """The names of the files that are written, in order."""

    names: list[str] = field(default_factory=list)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    seen = Writes()
    write_text = Path.write_text

    def recorded(path: Path, text: str) -> int:
        seen.names.append(path.name)
        return write_text(path, text)

    monkeypatch.setattr(Path, "write_text", recorded)
    return seen


@pytest.mark.parametrize(
    ("limit_mb", "order"),
    [
        (256, ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]),
        (64, ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]),
    ],
    ids=["up", "down"],
)
def test_memory_with_swap_is_never_below_memory_on_the_way(v1, writes, limit_mb, order):
    v1.set_memory_limit(limit_mb * MIB)
    assert writes.names == order
    assert {(v1.memory / name).read_text() for name in order} == {str(limit_mb * MIB)}


def test_v1_without_swap_accounting_has_one_limit(v1, writes):
    (v1.memory / "memory.memsw.limit_in_bytes").unlink()
    v1.set_memory_limit(64 * MIB)
    assert writes.names == ["memory.limit_in_bytes"]


def test_what_waits_in_sockets_is_limited_where_it_is_counted_apart(v1):
    limit = v1.memory / "memory.kmem.tcp.limit_in_bytes"
    v1.set_memory_limit(64 * MIB)
    assert not limit.exists()
    limit.write_text("9223372036854771712\n")
    v1.set_memory_limit(64 * MIB)
    assert limit.read_text() == str(16 * MIB)


def test_v2_gets_no_swap(v2):
    v2.set_memory_limit(64 * MIB)
    assert (v2.folder / "memory.max").read_text() == str(64 * MIB)
    assert (v2.folder / "memory.swap.max").read_text() == "0"


def test_v2_without_swap_accounting_has_one_limit(v2):
    (v2.folder / "memory.swap.max").unlink()
    v2.set_memory_limit(64 * MIB)
    assert not (v2.folder / "memory.swap.max").exists()


def test_cpus_become_quota_and_shares(v1):
    v1.set_cpus(0.5, 1.0)
    assert (v1.cpu / "cpu.cfs_quota_us").read_text() == "100000"
    assert (v1.cpu / "cpu.shares").read_text() == "512"


def test_cpus_become_max_and_weight(v2):
    v2.set_cpus(1.5, 2.0)
    assert (v2.folder / "cpu.max").read_text() == "200000 100000"
    assert (v2.folder / "cpu.weight").read_text() == "150"


@pytest.mark.parametrize(("cpus", "weight"), [(0.001, "1"), (500.0, "10000")])
def test_the_weight_stays_within_the_kernels_bounds(v2, cpus, weight):
    v2.set_cpus(cpus, cpus)
    assert (v2.folder / "cpu.weight").read_text() == weight


# --- the peak


def test_v1_resets_by_writing_zero(v1):
    file = v1.memory / "memory.max_usage_in_bytes"
    file.write_text("8")
    assert v1.reset_peak()
    assert file.read_text() == "0"


@pytest.mark.parametrize("name", ["memory.usage_in_bytes", "memory.stat", "memory.oom_control"])
def test_what_a_run_reads_is_opened_once_and_read_anew(v1, name):
    def read() -> tuple[int, int, int]:
        return v1.usage_bytes(), v1.page_cache_bytes(), v1.oom_kills()

    before = read()
    file = v1.memory / name
    file.write_text(f"total_cache {77 * MIB}\noom_kill 5\n" if "_in_bytes" not in name else "4096\n")
    file.rename(v1.memory / "renamed")
    assert read() != before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closing_a_group_closes_all_that_it_has_open(group):
    group.close()
    closed = open_files()
    for _ in range(2):
        assert group.held_bytes() > group.refused_processes()
        assert open_files() > closed
        group.close()
        group.close()
        assert open_files() == closed


def test_v2_resets_through_a_descriptor_and_reads_through_the_same(v2):
    assert v2.reset_peak()
    file = v2.folder / "memory.peak"
    assert file.read_bytes().startswith(b"reset\n")
    file.write_text("12345\n")
    file.rename(v2.folder / "renamed")  # what is still open is read, not what has the name
    assert v2.peak_bytes() == 12345
    v2.close()
    v2.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("error", [errno.EACCES, errno.EINVAL])
def test_a_kernel_that_cannot_reset_says_so_and_leaves_nothing_open(v2, monkeypatch, error):
    def refuse(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    before = open_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", refuse)
        assert not v2.reset_peak()
    assert open_descriptors() == before
    assert v2.peak_bytes() == 80 * MIB


def test_a_kernel_without_a_peak_cannot_reset_it(v2):
    (v2.folder / "memory.peak").unlink()
    assert not v2.reset_peak()


def test_a_kernel_without_a_peak_leaves_a_runs_peak_unknown_and_the_rest_measured(v2):
    (v2.folder / "memory.peak").unlink()
    meter = RunMeter(v2)
    (v2.folder / "memory.events").write_text("oom_kill 4\n")
    meter.sample()
    assert meter.read() == MemoryUse(peak_bytes=None, oom_kills=1, refused_processes=0, files_bytes=0)


def test_a_group_that_is_gone_has_no_unknown_peak(v2):
    shutil.rmtree(v2.folder)
    with pytest.raises(FileNotFoundError):
        v2.peak_bytes()


# --- one run's use


class Counters(ControlGroup):
    """A group whose counters are set by the test, in MiB; the peak follows the usage as the kernel's does."""

    def __init__(self, *, resettable: bool = True, usage: int = 10, cache: int = 0) -> None:
        self.resettable = resettable
        self.usage, self.cache, self.peak = usage, cache, usage
        self.kills = self.refused = self.files = 0
        self.gone = False

    def hold(self, usage: int, cache: int = 0) -> None:
        self.usage, self.cache = usage, cache
        self.peak = max(self.peak, usage)

    def set_memory_limit(self, limit_bytes: int) -> None:
        raise NotImplementedError

    def memory_limit(self) -> int:
        raise NotImplementedError

    def set_cpus(self, share: float, most: float) -> None:
        raise NotImplementedError

    def usage_bytes(self) -> int:
        if self.gone:
            raise OSError(errno.ENODEV, "gone")
        return self.usage * MIB

    def page_cache_bytes(self) -> int:
        return self.cache * MIB

    def cache_bytes(self) -> tuple[int, int]:
        return self.page_cache_bytes(), self.files * MIB

    def peak_bytes(self) -> int:
        return self.peak * MIB

    def reset_peak(self) -> bool:
        if self.resettable:
            self.peak = self.usage
        return self.resettable

    def oom_kills(self) -> int:
        return self.kills

    def processes(self) -> list[int]:
        raise NotImplementedError

    def task_count(self) -> int:
        raise NotImplementedError

    def refused_processes(self) -> int:
        return self.refused


def peak_mb(meter: RunMeter) -> int:
    peak_bytes = meter.read().peak_bytes
    assert peak_bytes is not None
    return peak_bytes // MIB


def test_the_base_is_not_the_runs():
    group = Counters(usage=10)
    meter = RunMeter(group)
    group.hold(60)
    group.hold(10)
    assert peak_mb(meter) == 50


def test_the_run_before_does_not_count():
    group = Counters(usage=10)
    group.hold(100)
    group.hold(10)
    meter = RunMeter(group)
    group.hold(20)
    group.hold(10)
    assert peak_mb(meter) == 10


def test_page_cache_that_came_with_the_run_does_not_count():
    group = Counters(usage=10)
    meter = RunMeter(group)
    group.hold(90, cache=60)
    assert peak_mb(meter) == 20


def test_page_cache_that_was_there_before_does_not_count():
    group = Counters(usage=40, cache=30)
    meter = RunMeter(group)
    group.hold(65, cache=30)
    group.hold(40, cache=30)
    assert peak_mb(meter) == 25


def test_a_sample_is_believed_when_cache_grew_after_the_peak_was_freed():
    group = Counters(usage=10)
    meter = RunMeter(group)
    group.hold(110)
    meter.sample()
    group.hold(110, cache=100)
    assert peak_mb(meter) == 100


@pytest.mark.parametrize(
    ("grown", "peak"),
    [
        (0, 60),  # the sandbox was not continued during the run
        (5, 55),  # it took a part of its memory
        (13, 47),  # it was completed
        (30, 47),  # the run has left more memory than the sandbox takes: that is the run's own
    ],
)
def test_a_sandbox_that_was_created_during_the_run_is_not_charged_to_it(grown, peak):
    group = Counters(usage=17)
    meter = RunMeter(group, idle_bytes=30 * MIB)
    assert not meter.began_complete
    group.hold(77)
    use = meter.read()
    group.hold(17 + grown - 14)  # the run's own sandbox has been freed
    assert meter.exclude_growth(use, sandbox_bytes=14 * MIB).peak_bytes == peak * MIB


@pytest.mark.parametrize("idle_mb", [0, 10, 17])
def test_a_run_that_began_with_all_sandboxes_is_charged_for_all_that_it_took(idle_mb):
    group = Counters(usage=17)
    meter = RunMeter(group, idle_mb * MIB)
    group.hold(77)
    use = meter.read()
    group.hold(30)
    assert meter.began_complete
    assert meter.exclude_growth(use, sandbox_bytes=14 * MIB) is use


def test_the_size_of_a_sandbox_is_what_a_run_that_began_with_all_of_them_has_freed():
    group = Counters(usage=30)
    meter = RunMeter(group, idle_bytes=30 * MIB)
    group.hold(77)
    group.hold(16)
    assert meter.freed_bytes() == 14 * MIB


def test_without_reset_a_peak_that_the_run_raised_is_its_own():
    group = Counters(resettable=False, usage=10)
    group.hold(50)
    group.hold(10)
    meter = RunMeter(group)
    group.hold(70)
    group.hold(10)
    assert peak_mb(meter) == 60


def test_without_reset_a_peak_that_the_run_did_not_raise_is_not_known():
    group = Counters(resettable=False, usage=10)
    group.hold(500)
    group.hold(10)
    meter = RunMeter(group)
    group.hold(30)
    meter.sample()
    group.hold(400)  # between two samples
    group.hold(10)
    assert meter.read().peak_bytes is None


def test_without_reset_a_sample_that_comes_near_to_what_it_can_have_been_is_its_peak():
    group = Counters(resettable=False, usage=10)
    group.hold(61)
    group.hold(10)
    meter = RunMeter(group)
    group.hold(60)
    meter.sample()
    group.hold(10)
    assert peak_mb(meter) == 50


def test_a_use_is_never_negative():
    group = Counters(usage=50)
    meter = RunMeter(group)
    group.hold(20)
    group.peak = 20
    assert peak_mb(meter) == 0


def test_only_the_runs_own_kills_and_refusals_count():
    group = Counters()
    group.kills, group.refused = 2, 5
    meter = RunMeter(group)
    group.kills, group.refused = 3, 9
    assert meter.read() == MemoryUse(peak_bytes=0, oom_kills=1, refused_processes=4, files_bytes=0)


def test_the_files_of_a_killed_run_are_the_largest_sample_because_they_may_be_gone():
    group = Counters()
    group.files = 3
    meter = RunMeter(group)
    group.files = 40
    meter.sample()
    group.files = 0
    meter.sample()
    assert meter.read().files_bytes is None
    group.kills = 1
    assert meter.read().files_bytes == 37 * MIB


def test_sampling_a_group_that_is_gone_is_harmless():
    group = Counters()
    meter = RunMeter(group)
    group.hold(30)
    meter.sample()
    group.gone = True
    meter.sample()
    assert peak_mb(meter) == 20
