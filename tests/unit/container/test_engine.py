"""What is made of Docker's answers; those here are answers that engines gave (docs/outer-walls.md)."""

from __future__ import annotations

from typing import Any

import pytest

from nanoagent.container.engine import container_uids, engine_problems, outside_uid, remaps_users

ORDINARY: dict[str, Any] = {
    "MemoryLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "CPUShares": True,
    "CgroupDriver": "cgroupfs",
    "CgroupVersion": "1",
    "Runtimes": {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}},
    "SecurityOptions": ["name=seccomp,profile=default"],
}
REMAPPED = ORDINARY | {"SecurityOptions": ["name=seccomp,profile=default", "name=userns"]}
# Docker 20.10 under an ordinary user, on a machine with control groups v1.
ROOTLESS = ORDINARY | {
    "MemoryLimit": False,
    "PidsLimit": False,
    "CpuCfsQuota": False,
    "CPUShares": False,
    "CgroupDriver": "none",
    "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"],
}
DEFAULT_BASE = 1_900_000_000


def problems(info: dict[str, Any], runtime: str | None = None, base: int = DEFAULT_BASE) -> list[str]:
    return engine_problems(info, docker_runtime=runtime, uid_base=base)


@pytest.mark.parametrize("runtime", [None, "runc", "io.containerd.runc.v2"])
def test_nothing_speaks_against_an_ordinary_engine(runtime):
    assert problems(ORDINARY, runtime) == []


def test_an_engine_that_says_nothing_of_itself_is_taken_as_it_is():
    assert problems({}) == []


def test_a_runtime_that_is_not_there_is_named_with_those_that_are():
    (problem,) = problems(ORDINARY, "runsc")
    assert problem.startswith("DOCKER_RUNTIME: ")
    assert all(word in problem for word in ("no runtime runsc", "io.containerd.runc.v2, runc", '"runtimes"'))


def test_a_shim_by_its_full_name_need_not_be_listed():
    assert problems(ORDINARY, "io.containerd.kata.v2") == []


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("MemoryLimit", "memory"),
        ("PidsLimit", "processes"),
        ("CpuCfsQuota", "CPU time"),
        ("CPUShares", "shares of the CPUs"),
    ],
)
def test_an_engine_without_one_of_the_limits_is_refused(limit, words):
    (problem,) = problems(ORDINARY | {limit: False})
    assert problem.startswith(f"DOCKER_HOST: this Docker cannot limit {words}, ")


def test_rootless_docker_without_control_groups_is_refused_for_all_of_them_at_once():
    (problem,) = problems(ROOTLESS, base=20_000)
    assert "memory, processes, CPU time, shares of the CPUs" in problem
    assert "cgroup driver none, version 1" in problem


def test_rootless_docker_with_control_groups_is_taken():
    assert problems(ORDINARY | {"SecurityOptions": ["name=rootless", "name=cgroupns"]}, base=20_000) == []


def test_every_problem_is_told_at_once():
    named = [problem.split(":")[0] for problem in problems(ROOTLESS, "runsc")]
    assert named == ["DOCKER_RUNTIME", "DOCKER_HOST", "CONTAINER_UID_BASE"]


def test_user_ids_that_a_remapping_engine_does_not_have_are_refused():
    (problem,) = problems(REMAPPED)
    assert problem.startswith(f"CONTAINER_UID_BASE: {DEFAULT_BASE} ")
    assert problems(REMAPPED, base=20_000) == []


@pytest.mark.parametrize(
    ("info", "remaps"), [(ORDINARY, False), (REMAPPED, True), (ROOTLESS, True), ({}, False)]
)
def test_engines_that_remap_are_known(info, remaps):
    assert remaps_users(info) is remaps


@pytest.mark.parametrize("base", [1000, 20_000, 55_536])
def test_ids_for_a_remapping_engine_end_below_nobody(base):
    assert container_uids(base) == range(base, 65_534)


@pytest.mark.parametrize("base", [65_536, DEFAULT_BASE])
def test_other_ids_are_many_and_fit_into_a_signed_number(base):
    assert len(container_uids(base)) == 200_000_000
    assert container_uids(base)[-1] < 2**31


@pytest.mark.parametrize(
    ("uid", "uid_map", "outside"),
    [
        (1_900_000_007, "         0          0 4294967295\n", 1_900_000_007),
        (20_000, "         0     100000      65536\n", 120_000),
        (65_536, "         0     100000      65536\n", None),
        # Rootless: the user himself is root inside.
        (0, "         0       1001          1\n         1     165536      65536\n", 1001),
        (20_000, "         0       1001          1\n         1     165536      65536\n", 185_535),
        (5, "", None),
    ],
)
def test_who_someone_is_outside_stands_in_the_map(uid, uid_map, outside):
    assert outside_uid(uid, uid_map) == outside
