"""`nanogrid-worker.service` agrees with the code."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from nanoagent import config

ROOT: Final = Path(__file__).parents[2]


@pytest.fixture
def unit() -> dict[str, list[str]]:
    """Each directive's values in order; a directive may stand more than once."""
    directives: dict[str, list[str]] = {}
    for line in (ROOT / "nanogrid-worker.service").read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            directives.setdefault(name, []).append(value)
    return directives


@pytest.fixture
def environment(unit: dict[str, list[str]]) -> dict[str, str]:
    pairs = " ".join(unit["Environment"]).split()
    return dict(pair.split("=", 1) for pair in pairs)


def test_systemd_waits_longer_than_the_worker_drains(unit):
    assert int(unit["TimeoutStopSec"][0]) > config.Settings.model_fields["drain_seconds"].default


def test_readiness_and_liveness_are_told_by_the_main_process(unit):
    assert unit["Type"] == ["notify"]
    assert unit["NotifyAccess"] == ["main"]
    assert int(unit["WatchdogSec"][0]) > 0


def test_only_the_worker_is_asked_to_stop(unit):
    assert unit["KillMode"] == ["mixed"]  # control-group would signal running jobs' helpers too


def test_it_always_comes_back(unit):
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]


def test_it_starts_the_published_entry(unit):
    interpreter, script = unit["ExecStart"][0].split()
    assert interpreter.startswith(unit["WorkingDirectory"][0])
    assert (ROOT / script).is_file()


def test_slot_folders_lie_where_docker_sees_them(environment):
    # PrivateTmp is a mount of the worker's own, and dockerd resolves bind sources among its own mounts.
    assert Path(environment["DOCKER_WORK_DIR_ROOT"]).parts[1] != "tmp"


def test_slots_and_code_lie_below_one_mount_so_that_files_can_be_linked(unit, environment):
    cache = Path("/var/cache") / unit["CacheDirectory"][0]
    assert cache in Path(environment["DOCKER_WORK_DIR_ROOT"]).parents
    assert cache in Path(environment["CODE_CACHE_DIR"]).parents


def test_the_environment_it_sets_is_known_to_the_code(environment):
    known = {name.upper() for name in config.Settings.model_fields}
    assert set(environment) - {"PYTHONUNBUFFERED"} <= known


def test_the_environment_it_sets_makes_valid_settings(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config.load(ROOT / ".env.example")


def test_the_containers_cgroups_can_be_written(unit):
    assert unit["ProtectControlGroups"] == ["no"]
    assert "/sys/fs/cgroup" in unit["ReadWritePaths"]


@pytest.mark.parametrize(
    "directive",
    ["NoNewPrivileges", "ProtectHome", "PrivateDevices", "RestrictSUIDSGID", "RestrictNamespaces"],
)
def test_it_is_boxed_in(unit, directive):
    assert unit[directive] == ["yes"]
    assert unit["ProtectSystem"] == ["strict"]
