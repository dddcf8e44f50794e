"""The virtual environment of scripts/setup: when it is made, when it stays, and what a failure leaves.

The script's functions run in a shell, in a checkout of a few files; only the installation of packages is a
stand-in.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
BASE_PYTHON = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
DEADLINE_S = 60  # a hang is a failure; nothing is measured by it

# What pip and uv do, without them: a line for each call, and whatever a test wants besides.
STAND_IN = """
source scripts/setup
make_venv() { "$PYTHON" -m venv --without-pip "$venv" && touch "$venv/.setup"; }
apt_install() { die "$1" "would be installed: ${*:2}"; }
python_has_venv() { "$PYTHON" -c 'import venv'; }
install_locked() {
  echo "$PYTHON ${UV_SYSTEM_PYTHON-} ${PIP_TARGET-} ${PYTHONHOME-}" >>"$root/installed"
  touch "$venv/complete"
  eval "${DURING_INSTALL:-}"
}
main venv
"""


@dataclass
class Checkout:
    """A checkout with the set-up script, as small as it can be."""

    root: Path

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def times_installed(self) -> int:
        log = self.root / "installed"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def change_lock(self) -> None:
        with (self.root / "requirements-dev.txt").open("a") as file:
            file.write("# changed\n")

    def environment(self, changes: dict[str, str | None]) -> dict[str, str]:
        """A plain shell's, whatever runs the tests."""
        plain = {"PATH": f"{BASE_PYTHON.parent}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.root)}
        return {name: value for name, value in (plain | changes).items() if value is not None}

    def setup(self, **changes: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-c", STAND_IN, "scripts/test"],
            cwd=self.root,
            env=self.environment(changes),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def make(self, **changes: str | None) -> str:
        done = self.setup(**changes)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root = tmp_path / "check out"  # a space, as some folders have
    (root / "scripts").mkdir(parents=True)
    for name in ("setup", "lib.sh"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    (root / "requirements-dev.txt").write_text("uv==1\n")
    (root / "pyproject.toml").write_text("")
    return Checkout(root)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A virtual environment of another project."""
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", tmp_path / "foreign"], check=True)
    return tmp_path / "foreign"


def activated(venv: Path) -> dict[str, str]:
    """What `source venv/bin/activate` changes."""
    return {
        "VIRTUAL_ENV": str(venv),
        "PATH": f"{venv}/bin:{BASE_PYTHON.parent}:/usr/sbin:/usr/bin:/sbin:/bin",
    }


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def fake_python(folder: Path, *, version: str, is_new: int = 1) -> Path:
    """An interpreter that says of itself what it is told to, and is the real one in all else."""
    folder.mkdir()
    file = folder / "python3"
    file.write_text(
        f'#!/bin/sh\nif [ "$1" = -IS ]; then printf "%s\\n" "$0" "{is_new} {version}"; exit; fi\n'
        f'exec "{BASE_PYTHON}" "$@"\n'
    )
    file.chmod(0o755)
    return file


# --- it stays


def test_the_environment_is_made_once(checkout: Checkout):
    assert "made" in checkout.make()
    assert "up to date" in checkout.make()
    assert checkout.times_installed == 1


def test_in_the_activated_environment_it_stays_as_it_is_and_afterwards_too(checkout: Checkout):
    checkout.make()
    before = contents(checkout.venv)
    assert "up to date" in checkout.make(**activated(checkout.venv))
    assert "up to date" in checkout.make(VIRTUAL_ENV=str(checkout.venv))
    assert "up to date" in checkout.make()
    assert contents(checkout.venv) == before


def test_an_activated_environment_of_another_project_changes_nothing_and_is_not_changed(
    checkout: Checkout, foreign: Path
):
    checkout.make()
    before = contents(foreign)
    assert "up to date" in checkout.make(**activated(foreign))
    assert "up to date" in checkout.make()
    assert contents(foreign) == before


def test_another_interpreter_on_the_path_changes_nothing(checkout: Checkout, tmp_path: Path):
    checkout.make()
    conda = fake_python(tmp_path / "conda", version="3.12.1 | packaged by conda")
    path = f"{conda.parent}:/usr/bin:/bin"
    assert "up to date" in checkout.make(PATH=path, CONDA_PREFIX=str(conda.parent), CONDA_DEFAULT_ENV="base")
    assert "up to date" in checkout.make(PATH=f"{tmp_path}/nothing:/usr/bin:/bin")
    assert "up to date" in checkout.make(PATH=None)
    assert checkout.times_installed == 1


def test_an_interpreter_that_is_chosen_by_another_path_is_the_same(
    checkout: Checkout, tmp_path: Path, foreign: Path
):
    checkout.make()
    (tmp_path / "link").symlink_to(BASE_PYTHON)
    for chosen in (BASE_PYTHON, tmp_path / "link", foreign / "bin/python", checkout.venv / "bin/python3"):
        assert "up to date" in checkout.make(PYTHON=str(chosen))


# --- it is made anew


def test_an_activated_environment_is_not_what_the_new_one_is_made_from(checkout: Checkout, foreign: Path):
    checkout.make(**activated(foreign))
    checkout.change_lock()
    checkout.make(**activated(checkout.venv))
    assert checkout.times_installed == 2
    assert f"home = {BASE_PYTHON.parent}\n" in (checkout.venv / "pyvenv.cfg").read_text()
    assert not (checkout.root / ".venv.old").exists()


def test_another_chosen_interpreter_makes_it_anew(checkout: Checkout, tmp_path: Path):
    checkout.make()
    other = fake_python(tmp_path / "other", version="3.13.0")
    assert "made" in checkout.make(PYTHON=str(other), PATH="/usr/bin:/bin")


def test_a_python_that_is_too_old_is_passed_over_unless_it_was_chosen(checkout: Checkout, tmp_path: Path):
    old = fake_python(tmp_path / "old", version="3.9.2", is_new=0)
    failed = checkout.setup(PYTHON=str(old))
    assert failed.returncode != 0
    assert f"{old} is 3.9.2; 3.11 or newer is needed" in failed.stderr
    assert "made" in checkout.make(PATH=f"{old.parent}:{BASE_PYTHON.parent}:/usr/bin:/bin")


def test_settings_of_the_shell_do_not_send_packages_elsewhere(checkout: Checkout):
    checkout.make(UV_SYSTEM_PYTHON="1", PIP_TARGET="/elsewhere", PYTHONHOME="/elsewhere")
    assert (checkout.root / "installed").read_text().split() == [str(BASE_PYTHON)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_is_made_by_sudo_belongs_to_the_owner_of_the_checkout(checkout: Checkout):
    os.chown(checkout.root, 65_534, 65_534)
    checkout.make(SUDO_UID="65534", SUDO_GID="65534")
    made = [checkout.venv, *checkout.venv.rglob("*"), *(checkout.root / ".nanoagent").glob("*.l*")]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made} == {(65_534, 65_534)}


def test_an_environment_whose_interpreter_is_gone_is_made_anew(checkout: Checkout):
    checkout.make()
    link = checkout.venv / "bin/python"
    link.unlink()
    link.symlink_to("/nonexistent/python3")
    assert "made" in checkout.make(**activated(checkout.venv))


def test_an_environment_that_somebody_else_made_there_is_refused_and_stays(checkout: Checkout, foreign: Path):
    foreign.rename(checkout.venv)
    before = contents(checkout.venv)
    failed = checkout.setup(**activated(checkout.venv))
    assert failed.returncode != 0
    assert "was not made by this script" in failed.stderr
    assert contents(checkout.venv) == before


# --- beside a running worker, and interrupted


def test_it_is_not_made_anew_under_a_running_worker(checkout: Checkout):
    checkout.make()
    command = [str(checkout.venv / "bin/python"), "-c", "input()", "nanoagent", "dev"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as worker:
        assert "up to date" in checkout.make()
        checkout.change_lock()
        before = contents(checkout.venv)
        failed = checkout.setup(**activated(checkout.venv))
        assert failed.returncode != 0
        assert "these processes run in it; stop them, then run this again" in failed.stderr
        assert f"  {worker.pid} {checkout.venv}/bin/python" in failed.stderr
        assert contents(checkout.venv) == before
        worker.communicate(b"\n")
    assert "made" in checkout.make()


def test_a_failed_installation_gives_the_environment_of_before_back(checkout: Checkout):
    checkout.make()
    before = contents(checkout.venv)
    checkout.change_lock()
    failed = checkout.setup(DURING_INSTALL="echo no index in reach; return 1")
    assert failed.returncode != 0
    assert "no index in reach" in failed.stderr
    assert contents(checkout.venv) == before
    assert "made" in checkout.make()


def test_a_failed_first_installation_is_made_anew(checkout: Checkout):
    assert checkout.setup(DURING_INSTALL="return 1").returncode != 0
    assert "made" in checkout.make()


@contextmanager
def installing(checkout: Checkout) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A set-up in the middle of its installation, and a descriptor that lets it go on when it is closed."""
    begun, begin = os.pipe()
    held, release = os.pipe()
    with subprocess.Popen(
        ["/bin/bash", "-c", STAND_IN, "scripts/test"],
        cwd=checkout.root,
        env=checkout.environment({"DURING_INSTALL": f"echo x >&{begin}; cat <&{held}"}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[begin, held],
        start_new_session=True,
    ) as running:
        os.close(begin)
        os.close(held)
        assert os.read(begun, 1) == b"x"
        os.close(begun)
        yield running, release


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_installation_leaves_no_process_and_the_next_set_up_mends_it(
    checkout: Checkout, number: signal.Signals
):
    checkout.make()
    before = contents(checkout.venv)
    checkout.change_lock()
    with installing(checkout) as (running, release):
        if number == signal.SIGKILL:  # of all processes, as a machine that loses its power does
            kill_session(running.pid)
        else:
            running.send_signal(number)
        running.wait(DEADLINE_S)
        assert session(running.pid) == []
        os.close(release)
    if number != signal.SIGKILL:
        assert contents(checkout.venv) == before
    assert "made" in checkout.make()
    assert not (checkout.root / ".venv.old").exists()


def test_a_set_up_waits_for_one_of_its_own_checkout_and_for_no_other(checkout: Checkout, tmp_path: Path):
    shutil.copytree(checkout.root, tmp_path / "other")
    with installing(checkout) as (_, release):
        assert "made" in Checkout(tmp_path / "other").make()
        with subprocess.Popen(
            ["/bin/bash", "-c", STAND_IN, "scripts/test"],
            cwd=checkout.root,
            env=checkout.environment({}),
            stdout=subprocess.PIPE,
            text=True,
        ) as second:
            assert second.stdout is not None
            assert "waiting for another set-up" in second.stdout.readline()
            os.close(release)
            assert "up to date" in second.communicate(timeout=DEADLINE_S)[0]
    assert checkout.times_installed == 1


def test_a_rebuild_that_was_killed_gives_the_environment_back_when_the_old_lock_is_back(checkout: Checkout):
    checkout.make()
    checkout.venv.rename(checkout.root / ".venv.old")
    (checkout.venv / "bin").mkdir(parents=True)
    assert "restored after an interrupted rebuild" in checkout.make()
    assert checkout.times_installed == 1


def session(leader: int) -> list[int]:
    """The processes of a session, by its leader's id."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # After the name in brackets: state, parent, group, session (proc_pid_stat(5)).
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def kill_session(leader: int) -> None:
    while found := session(leader):
        for pid in found:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
