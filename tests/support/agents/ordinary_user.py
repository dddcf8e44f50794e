"""A worker that runs as an ordinary user, as in the systemd unit. Tests run as root and become that user.

The user has no name, and only the group that may use Docker. Interpreter and repository may be in a home
folder that other users may not enter, for example root's. So a mount namespace of the process binds them to a
place that the user can read.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from support.agents.worker import WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.dev.local_services import EmbeddedStack

ROOT = Path(__file__).parents[3]
UID = 64_321  # unused: no package or login gets an ID above 60,000 (Debian policy, 9.2.2)
DOCKER_SOCKET = Path("/var/run/docker.sock")


def why_not() -> str | None:
    """Return the reason why no process can be started under another user ID here, or None."""
    if os.geteuid() != 0:
        return "only root can start a worker under another user's id"
    if missing := [tool for tool in ("setpriv", "unshare", "mount") if shutil.which(tool) is None]:
        return f"util-linux is not complete here: {', '.join(missing)}"
    if not DOCKER_SOCKET.exists() or not stat.S_ISSOCK(DOCKER_SOCKET.stat().st_mode):
        return f"Docker's socket is not at {DOCKER_SOCKET}, so that it is not known who may use it"
    return None


@contextmanager
def place_of_its_own() -> Iterator[Path]:
    """Yield a folder that every user may enter, with `tasks`, `cache` and `home` of the ordinary user.

    Raises:
        pytest.skip.Exception: No other user is possible here.
    """
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    place = Path(tempfile.mkdtemp(prefix="na-"))
    place.chmod(0o755)
    for name in ("tasks", "cache", "home"):
        (place / name).mkdir(mode=0o700)
        os.chown(place / name, UID, UID)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def python_of(place: Path, *, capability: str | None = None, umask: int = 0o077) -> Path:
    """Return a program that runs this Python under the user ID.

    Args:
        place: See `place_of_its_own`.
        capability: The capability that it keeps, in the syntax of setpriv(1), or none.
        umask: Its file mode creation mask at the start.
    """
    interpreter, repository = place / "python", place / "repository"
    interpreter.mkdir(exist_ok=True)
    repository.mkdir(exist_ok=True)
    packages = Path(sysconfig.get_paths()["purelib"]).relative_to(ROOT)
    capabilities = "-all" if capability is None else f"-all,+{capability}"
    environment = {
        "LD_LIBRARY_PATH": interpreter / "lib",
        "PYTHONHOME": interpreter,
        "PYTHONPATH": f"{repository / 'src'}:{repository / packages}",
        "PYTHONDONTWRITEBYTECODE": 1,
        "HOME": place / "home",
    }
    become = [
        *("setpriv", f"--reuid={UID}", f"--regid={UID}", f"--groups={DOCKER_SOCKET.stat().st_gid}"),
        *(f"--{kind}={capabilities}" for kind in ("inh-caps", "ambient-caps", "bounding-set")),
        *("--no-new-privs", str(interpreter / "bin" / Path(sys.executable).resolve().name)),
    ]
    program = place / "as-ordinary-user"
    program.write_text(
        "\n".join(
            [
                "#!/bin/sh -e",
                'test "$1" = --bound || exec unshare --mount --propagation private "$0" --bound "$@"',
                "shift",
                f"mount --bind {shlex.quote(sys.base_prefix)} {interpreter}",
                f"mount --bind {shlex.quote(str(ROOT))} {repository}",
                *(f"export {name}={shlex.quote(str(value))}" for name, value in environment.items()),
                f"umask {umask:04o}",
                "cd /",
                f'exec {shlex.join(become)} "$@"',
                "",
            ]
        )
    )
    program.chmod(0o755)
    return program


def run_python(program: Path, source: str) -> str:
    """Run Python code under the user ID, and return its output."""
    done = subprocess.run([program, "-c", source], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


class OrdinaryWorker(WorkerUnderTest):
    """A worker under test that runs under the user ID.

    Args:
        stack: The services.
        place: See `place_of_its_own`.
        settings: Beyond those that the stack needs.
        **how: See `python_of`.
    """

    def __init__(
        self, stack: EmbeddedStack, place: Path, settings: dict[str, str] | None = None, **how: Any
    ) -> None:
        # A fork would not change its user.
        settings = {"CODE_CACHE_DIR": str(place / "cache")} | (settings or {})
        super().__init__(stack, place, settings, forks=False)
        self.tasks = place / "tasks"
        self._program = python_of(place, **how)

    async def __aenter__(self) -> Self:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(self._program))  # the program that starts workers
            await super().__aenter__()
        return self

    @property
    def pid(self) -> int:
        """The worker's process ID; the programs that change the user use exec, so it stays the same."""
        assert self.agent._process is not None
        return self.agent._process.pid
