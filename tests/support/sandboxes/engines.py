"""Separate Docker Engines, with settings that the shared engine must not have."""

from __future__ import annotations

import grp
import io
import json
import os
import pwd
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "tiny:latest"
_DEADLINE_S = 60
_STARTS = 4
SUBORDINATE = 1_000_000  # the first of the 65,536 user IDs of a remapping engine
_MOUNT_POINTS = ("work", "tmp", "output", "input", "slot", "proc", "sys", "dev", "etc")


def why_none() -> str | None:
    """Return the reason why no engine can be started here, or None."""
    if os.geteuid() != 0:
        return "to start a Docker Engine takes root"
    missing = [name for name in ("dockerd", "containerd", "runc", "unshare") if shutil.which(name) is None]
    return f"not on PATH: {', '.join(missing)}" if missing else None


class OwnEngine:
    """A separate engine.

    Attributes:
        address: The value for DOCKER_HOST.
        folder: The folder of all its data, which is deleted after the test.
        process: The process of dockerd.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, folder: Path, command: str) -> None:
        self.folder = folder
        self.address = f"unix://{folder}/docker.sock"
        self._command = command

    def start(self) -> None:
        """Start it, and wait until it answers. Restart it if it exits on a slow machine, as systemd would."""
        for _ in range(_STARTS - 1):
            try:
                self._start()
            except AssertionError:
                if self.process.poll() is None:
                    raise
            else:
                return
        self._start()

    def _start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            # A separate network: an engine without a bridge removes docker0, which belongs to another engine.
            self.process = subprocess.Popen(
                ["unshare", "--net", "--mount", "sh", "-c", self._command],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _await_answer(self, self.process)

    def kill(self) -> None:
        """Kill it and its containerd, without a chance to clean up."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop its containers, and then the engine."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_DEADLINE_S)
        finally:
            self.process.kill()

    def docker(self, *arguments: str, **kwargs: Any) -> bytes:
        """Run a Docker command and return its output."""
        command = ["docker", "--host", self.address, *arguments]
        return bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE, **kwargs).stdout)


@contextmanager
def own_engine(runtimes: dict[str, dict[str, Any]], *, remaps: bool = False) -> Iterator[OwnEngine]:
    """Start an engine with these runtimes besides runc, and one image, `IMAGE`.

    Args:
        runtimes: The runtimes, in the format of daemon.json.
        remaps: Whether it remaps user IDs to `SUBORDINATE` and above. It reads /etc/subuid and /etc/subgid,
            which are separate files in the engine's own mount namespace.
    """
    # Not pytest's folder, whose path is too long for Unix sockets.
    folder = Path(tempfile.mkdtemp(prefix="na-engine-"))
    folder.chmod(0o711)  # the remapped root must reach its files
    settings: dict[str, Any] = {
        "data-root": str(folder / "data"),
        "exec-root": str(folder / "exec"),
        "pidfile": str(folder / "pid"),
        "hosts": [f"unix://{folder}/docker.sock"],
        "bridge": "none",
        "iptables": False,
        "ip6tables": False,
        "runtimes": runtimes,
    }
    command = f"exec dockerd --config-file {folder}/daemon.json"
    if remaps:
        user, group = "nobody", grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
        settings["userns-remap"] = f"{user}:{group}"
        (folder / "subid").write_text("".join(f"{name}:{SUBORDINATE}:65536\n" for name in (user, group)))
        mounts = "".join(f"mount --bind {folder}/subid /etc/{name} && " for name in ("subuid", "subgid"))
        command = mounts + command
    (folder / "daemon.json").write_text(json.dumps(settings))
    engine = OwnEngine(folder, command)
    try:
        engine.start()
        engine.docker(
            "import", "--change", 'ENTRYPOINT ["/nanosupervisor/supervisor"]', "-", IMAGE, input=_image()
        )
        yield engine
    finally:
        engine.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _await_answer(engine: OwnEngine, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        try:
            engine.docker("version", stderr=subprocess.DEVNULL)
        except subprocess.CalledProcessError as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                said = (engine.folder / "log").read_text()[-2000:]
                raise AssertionError(f"the engine does not come up:\n{said}") from exc
            time.sleep(0.05)
        else:
            return


def _image() -> bytes:
    """Return an image with only a supervisor and mount points, in the format of `docker import`."""
    made = subprocess.run(
        ["docker", "create", "nanoagent-cpp:latest"], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        copied = subprocess.run(
            ["docker", "cp", f"{made}:/nanosupervisor/supervisor", "-"], check=True, capture_output=True
        ).stdout
    finally:
        subprocess.run(["docker", "rm", made], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(copied)) as archive:
        (member,) = archive.getmembers()
        supervisor = archive.extractfile(member)
        assert supervisor is not None
        content = supervisor.read()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in (*_MOUNT_POINTS, "nanosupervisor", "nanosupervisor/empty"):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            folder.mode = 0o1777 if name in _MOUNT_POINTS[:4] else 0o755
            archive.addfile(folder)
        program = tarfile.TarInfo("nanosupervisor/supervisor")
        program.size, program.mode = len(content), 0o755
        archive.addfile(program, io.BytesIO(content))
    return packed.getvalue()
