"""The finite things of the host: budgets, and what is said when little is left."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from nanoagent.host import resources
from nanoagent.host.resources import (
    DESCRIPTORS_PER_CONTAINER,
    MIN_DESCRIPTORS,
    OWN_DESCRIPTORS,
    Descriptors,
    HostRoom,
    descriptor_plan,
    supplies,
)
from nanoagent.model.errors import ConfigError
from nanoagent.wiring import containers, network
from support.doubles.fakes import make_settings

WELL = {
    "/proc/loadavg": "0.1 0.2 0.3 4/900 12345\n",
    "/proc/sys/kernel/pid_max": "32768\n",
    "/proc/sys/kernel/threads-max": "60000\n",
    "/proc/sys/fs/file-nr": "2048\t0\t100000\n",
    "/proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t9\t1\nmemory\t8\t120\t1\n",
}


@pytest.mark.parametrize("limit", [MIN_DESCRIPTORS, 256, 1024, 4096, 65536, 1 << 30])
@pytest.mark.parametrize("sockets", [0, 1, 4, 16])
def test_what_the_plan_gives_out_is_there(limit, sockets):
    plan = descriptor_plan(limit, sockets)
    held = plan.containers * (DESCRIPTORS_PER_CONTAINER + sockets) + 2 * plan.connections + plan.fresh_trees
    assert held + OWN_DESCRIPTORS <= limit
    assert min(plan.containers, plan.connections, plan.fresh_trees) >= 1


def test_the_usual_limits_are_enough_for_the_usual_machine():
    assert descriptor_plan(256, 1).containers == 6
    assert descriptor_plan(1024, 1).containers > 30
    assert descriptor_plan(20_000, 1).containers > 1000
    assert descriptor_plan(65536, 4).containers > 2000


def test_the_soft_limit_is_raised_to_the_hard_one():
    code = (
        "import resource\n"
        "from nanoagent.host import resources\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))\n"
        "print(resources.raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "print(resources.raise_descriptor_limit())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["400 400 400", "400"]


def test_a_limit_that_may_not_be_raised_is_used_as_it_is(monkeypatch):
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert resources.raise_descriptor_limit() == 256


def test_no_limit_is_a_large_one(monkeypatch):
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (unlimited, unlimited))
    assert resources.raise_descriptor_limit() == 1 << 30


def test_a_worker_without_descriptors_for_containers_does_not_start(monkeypatch):
    monkeypatch.setattr(resources, "raise_descriptor_limit", lambda: MIN_DESCRIPTORS - 1)
    with pytest.raises(ConfigError, match=r"ulimit -n: 191 file descriptors are too few; allow at least 192"):
        containers.raise_descriptor_limit()


@pytest.mark.parametrize(("limit", "expected"), [(MIN_DESCRIPTORS, 1), (1024, 14), (4096, 62), (1 << 30, 64)])
def test_the_connections_of_runs_fit_into_the_descriptors(limit, expected):
    settings = make_settings(worker_memory_mb=4096, worker_cpus=4.0, network_max_connections=64, network="ai")
    assert network.max_connections_per_run(settings, limit) == expected
    without = make_settings(network_max_connections=64, network="none")
    assert network.max_connections_per_run(without, limit) == 64


async def test_open_descriptors_are_counted_and_idle_containers_given_up_when_few_are_left():
    used, now = 1000, 0.0
    evicted: list[int] = []
    descriptors = Descriptors(1024, evicted.append, count=lambda: used, clock=lambda: now)
    reason = await descriptors.not_ready_reason()
    assert reason is not None
    assert reason.startswith("1000 of 1024 file descriptors of the worker are open; idle containers")
    assert "LimitNOFILE" in reason
    assert evicted == [1]
    used = 100
    assert await descriptors.not_ready_reason() == reason  # for two seconds
    now = 2.0
    assert await descriptors.not_ready_reason() is None
    assert evicted == [1]


async def test_this_process_has_descriptors_left():
    evicted: list[int] = []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert await Descriptors(limit, evicted.append).not_ready_reason() is None
    assert resources.open_descriptors() > 2


def test_a_machine_with_enough_of_everything_is_well():
    assert [supply for supply in supplies(WELL.get) if supply.shortage()] == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("/proc/loadavg", "0 0 0 4/32600 1\n", "32600 of 32768 processes and threads of the machine"),
        ("/proc/sys/kernel/threads-max", "1000\n", "900 of 1000 processes and threads of the machine"),
        ("/proc/sys/fs/file-nr", "99000\t0\t100000\n", "99000 of 100000 open files of the machine"),
        ("/proc/cgroups", "memory\t8\t65000\t1\n", "65000 of 65535 memory control groups of the machine"),
        (
            "/sys/fs/cgroup/cgroup.stat",
            "nr_descendants 1000\nnr_dying_descendants 64000\n",
            "65000 of 65535 memory control groups of the machine",
        ),
    ],
)
def test_what_the_machine_is_short_of_is_named_with_the_remedy(path, text, expected):
    files = WELL | {path: text}
    (reason,) = [said for supply in supplies(files.get) if (said := supply.shortage()) is not None]
    assert reason.startswith(expected)
    assert len(reason) > len(expected) + 20


@pytest.mark.parametrize("path", WELL)
@pytest.mark.parametrize("text", [None, "", "no number\n", "max\n"])
def test_what_cannot_be_seen_is_not_short(path, text):
    files: dict[str, str | None] = {**WELL, path: text}
    assert [supply for supply in supplies(files.get) if supply.shortage()] == []


async def test_this_machine_is_looked_at():
    found = supplies(resources._text)
    assert [supply.name for supply in found if supply.used is None or supply.limit is None] == []
    assert await HostRoom().not_ready_reason() is None


async def test_the_machine_is_looked_at_every_two_seconds_at_most():
    files, now = dict(WELL), 0.0
    room = HostRoom(files.get, clock=lambda: now)
    assert await room.not_ready_reason() is None
    files["/proc/sys/fs/file-nr"] = "99999 0 100000"
    assert await room.not_ready_reason() is None
    now = 2.0
    assert "open files" in (await room.not_ready_reason() or "")
