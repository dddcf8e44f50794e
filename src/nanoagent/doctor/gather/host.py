"""Facts about the machine: files of the kernel, folders, limits and the clock."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.doctor import facts
from nanoagent.doctor.facts import DOCKER_ROOT, Engine, Folder, Host
from nanoagent.host import private_dirs, resources

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nanoagent.config import Settings

_MAX_FILE_BYTES: Final = MIB  # mountinfo has a line for each container
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
# A zeroed buffer, with which adjtimex only reads the clock's state. struct timex has 208 bytes.
_TIMEX_BYTES: Final = 512


def collect(settings: Settings, root: Path = Path("/")) -> Host:
    """Collect all facts about this machine.

    Args:
        settings: The worker's settings, which name the folders.
        root: The folder below which the files of the kernel are read.
    """
    files = _read_all(root, facts.FILES)
    unified = Host(files, "").cgroup_mounts.get("")
    if unified is not None:
        files |= _read_all(root, [f"{unified}/cgroup.controllers"])
    uname = platform.uname()
    mounts = facts.mounts_of(files.get(facts.MOUNTINFO, ""))
    return Host(
        files=files,
        release=uname.release,
        machine=uname.machine,
        uid=os.geteuid(),
        open_files=resources.hard_descriptor_limit(),  # the worker raises its soft limit to it
        now=time.time(),
        clock_is_synchronised=_clock_is_synchronised(),
        folders=(
            folder("CODE_CACHE_DIR", settings.code_cache_dir.absolute(), mounts),
            folder("DOCKER_WORK_DIR_ROOT", settings.docker_work_dir_root.absolute(), mounts),
        ),
    )


def with_docker_root(host: Host, engine: Engine) -> Host:
    """Add the folder where Docker keeps images and containers, if Docker is on this machine."""
    path = engine.info.get("DockerRootDir")
    if not path or not engine.address.startswith("unix://"):
        return host
    return replace(host, folders=(*host.folders, folder(DOCKER_ROOT, Path(str(path)), host.mounts)))


def folder(name: str, path: Path, mounts: list[facts.Mount]) -> Folder:
    """Examine a folder. If it does not exist yet, examine the nearest folder above it.

    Args:
        name: The setting that names it, or `DOCKER_ROOT`.
        path: Its absolute path.
        mounts: All mounts of this machine.
    """
    try:
        nearest = path
        while not nearest.exists():
            nearest = nearest.parent
        nearest = nearest.resolve()
        space = os.statvfs(nearest)
        device = nearest.stat().st_dev
        if name != DOCKER_ROOT and (refused := private_dirs.unusable(path, name)) is not None:
            return Folder(name, str(path), refused=refused)
    except OSError as exc:
        return Folder(name, str(path), problem=f"it cannot be examined: {exc.strerror}")
    return Folder(
        name=name,
        path=str(path),
        nearest=str(nearest),
        mount=facts.mount_of(str(nearest), mounts),
        device=device,
        free_bytes=space.f_bavail * space.f_frsize,
        free_inodes=space.f_favail if space.f_files else None,
        writable=os.access(nearest, os.W_OK | os.X_OK),
    )


def _read_all(root: Path, paths: Iterable[str]) -> dict[str, str]:
    return {path: text for path in paths if (text := _read(root / path.lstrip("/"))) is not None}


def _read(path: Path) -> str | None:
    """Return a file's text, or a link's target; None if it cannot be read."""
    try:
        if path.is_symlink():
            return str(path.readlink())
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode(errors="replace")
    except OSError:
        return None


def _clock_is_synchronised() -> bool | None:
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR  # ProtectClock= of systemd forbids the call
