"""The AppArmor profile permits each mount of a sandbox: a new mount in sandbox_mounts.c needs a rule there.

Whether the rules are right, `make test-vm` shows.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MOUNTS = (ROOT / "src/nanosupervisor/sandbox_mounts.c").read_text()
PROFILE = (ROOT / "deploy/apparmor/nanoagent").read_text()


def alternatives(pattern: str) -> set[str]:
    """The paths of a pattern with braces; without the slash that AppArmor puts behind a folder."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [part.split(",") if position % 2 else [part] for position, part in enumerate(parts)]
    return {"".join(chosen).rstrip("/") for chosen in itertools.product(*choices)}


def permitted(options: str) -> set[str]:
    """Where mounts of these options may be made."""
    targets = re.findall(
        rf"^  mount (?:fstype=\w+ )?{re.escape(options)} .*-> (\S+),$", PROFILE, re.MULTILINE
    )
    return set().union(*(alternatives(target) for target in targets))


def listed(name: str) -> set[str]:
    """The paths in one of the lists of sandbox_mounts.c."""
    found = re.search(rf"{name}\[\] = \{{(.*?)\}};", MOUNTS, re.DOTALL)
    assert found is not None
    return set(re.findall(r'"([^"]+)"', found[1]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hidden", "options=(rw, bind)"),
        ("hidden_in_sys", "options=(rw, bind)"),
        ("read_only", "options=(rw, rbind)"),
        ("read_only", "options=(ro, remount, bind, nosuid, nodev, noexec)"),
    ],
)
def test_what_a_sandbox_covers_may_be_covered(name, options):
    assert listed(name)
    assert listed(name) <= permitted(options)


def test_no_file_system_is_mounted_that_the_profile_does_not_name():
    mounted = set(re.findall(r'mount\("\w+", [^;]*?, "(\w+)"', MOUNTS))
    assert {"proc", "tmpfs", "mqueue", "overlay"} <= mounted
    assert mounted == set(re.findall(r"^  mount fstype=(\w+) ", PROFILE, re.MULTILINE))
