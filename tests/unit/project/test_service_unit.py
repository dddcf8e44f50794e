"""`nanogrid-worker.service` agrees with the code."""

from __future__ import annotations

import shutil
import subprocess
from itertools import chain
from pathlib import Path
from typing import Final

import pytest

from nanoagent import config
from nanoagent.wiring import closing

ROOT: Final = Path(__file__).parents[3]


UNIT: Final = ROOT / "nanogrid-worker.service"
DROP_IN: Final = ROOT / "deploy/no-capability.conf"


def directives_of(*files: Path) -> dict[str, list[str]]:
    """Each directive's values in order; a directive may stand more than once, and an empty one forgets."""
    directives: dict[str, list[str]] = {}
    for line in chain.from_iterable(file.read_text().splitlines() for file in files):
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            directives.setdefault(name, []).append(value)
            if not value:
                directives[name].clear()
    return directives


@pytest.fixture
def unit() -> dict[str, list[str]]:
    return directives_of(UNIT)


@pytest.fixture
def environment(unit: dict[str, list[str]]) -> dict[str, str]:
    pairs = " ".join(unit["Environment"]).split()
    return dict(pair.split("=", 1) for pair in pairs)


def test_systemd_waits_longer_than_the_worker_drains(unit):
    drain_s = config.Settings.model_fields["drain_seconds"].default
    assert int(unit["TimeoutStopSec"][0]) > drain_s + closing.STOP_TAIL_S


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


def test_it_is_an_ordinary_user_who_may_use_docker(unit):
    (user,) = unit["User"]
    users = [line.split() for line in (ROOT / "deploy/sysusers.conf").read_text().splitlines()]
    assert [words[1] for words in users if words and words[0] == "u"] == [user]
    assert user != "root"
    assert unit["SupplementaryGroups"] == ["docker"]


def test_its_one_capability_lets_it_write_the_containers_cgroups(unit):
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == ["CAP_DAC_OVERRIDE"]
    assert unit["ProtectControlGroups"] == ["no"]
    assert unit["ReadWritePaths"] == ["/sys/fs/cgroup"]


def test_the_drop_in_takes_the_capability_and_what_it_was_for():
    without = directives_of(UNIT, DROP_IN)
    assert (
        without["CapabilityBoundingSet"] == without["AmbientCapabilities"] == without["ReadWritePaths"] == []
    )
    assert without["ProtectControlGroups"][-1] == "yes"
    assert set(without) == set(directives_of(UNIT))  # it adds nothing that the unit does not speak of


def test_what_it_keeps_is_for_its_user_alone(unit):
    assert unit["CacheDirectoryMode"] == ["0700"]
    assert unit["UMask"] == ["0077"]


def test_systemd_knows_every_directive():
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed here")
    # It also finds that what the unit starts is not installed on this machine, and says so by its exit code.
    done = subprocess.run([analyze, "verify", "--man=no", UNIT], capture_output=True, text=True, check=False)
    assert "is not executable" in done.stderr or done.returncode == 0, done.stderr
    complaints = [line for line in done.stderr.splitlines() if "Unknown" in line or "Failed to parse" in line]
    newer = [line for line in complaints if "RestartSteps" in line or "RestartMaxDelaySec" in line]
    assert complaints == newer  # the two that the unit says older versions ignore


@pytest.mark.parametrize(
    "directive",
    ["NoNewPrivileges", "ProtectHome", "PrivateDevices", "RestrictSUIDSGID", "RestrictNamespaces"],
)
def test_it_is_boxed_in(unit, directive):
    assert unit[directive] == ["yes"]
    assert unit["ProtectSystem"] == ["strict"]
