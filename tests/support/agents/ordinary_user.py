"""A worker under an ordinary user's id, as the systemd unit has it; tests run as root and become that user.

The user has no name and nothing but the group that may use Docker. Interpreter and repository may lie in a
home that nobody else may enter, as they do where tests run as root: they are bound, in a mount namespace that
goes with the process, to where the user can read them.
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
UID = 64_321  # nobody has it: no package or login gets an id above 60,000 (Debian policy, 9.2.2)
DOCKER_SOCKET = Path("/var/run/docker.sock")


def why_not() -> str | None:
    """Why no process can be started under another user's id here, None when it can."""
    if os.geteuid() != 0:
        return "only root can start a worker under another user's id"
    if missing := [tool for tool in ("setpriv", "unshare", "mount") if shutil.which(tool) is None]:
        return f"util-linux is not complete here: {', '.join(missing)}"
    if not DOCKER_SOCKET.exists() or not stat.S_ISSOCK(DOCKER_SOCKET.stat().st_mode):
        return f"Docker's socket is not at {DOCKER_SOCKET}, so that it is not known who may use it"
    return None


@contextmanager
def place_of_its_own() -> Iterator[Path]:
    """A folder that everyone may enter, with `tasks`, `cache` and `home` of the user's.

    Raises:
        pytest.skip.Exception: There can be no other user here.
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
    """A program that is this Python under the user's id.

    Args:
        place: See `place_of_its_own`.
        capability: The one that it has besides, as setpriv(1) calls it, or none.
        umask: The file mode creation mask that it starts with.
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
    """What a piece of Python prints under the user's id."""
    done = subprocess.run([program, "-c", source], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


class OrdinaryWorker(WorkerUnderTest):
    """A worker under test that runs under the user's id.

    Args:
        stack: The services.
        place: See `place_of_its_own`.
        settings: Beyond those that the stack needs.
        **how: See `python_of`.
    """

    def __init__(
        self, stack: EmbeddedStack, place: Path, settings: dict[str, str] | None = None, **how: Any
    ) -> None:
        super().__init__(stack, place, {"CODE_CACHE_DIR": str(place / "cache")} | (settings or {}))
        self.tasks = place / "tasks"
        self._program = python_of(place, **how)

    async def __aenter__(self) -> Self:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(self._program))  # it is what an agent is started with
            await super().__aenter__()
        return self

    @property
    def pid(self) -> int:
        """Its process: what becomes the user does so by exec."""
        assert self.agent._process is not None
        return self.agent._process.pid
