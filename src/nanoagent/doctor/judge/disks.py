"""Findings about the folders that the worker and Docker write to: their free space and file systems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.common.units import MIB
from nanoagent.doctor.facts import DOCKER_ROOT
from nanoagent.doctor.finding import Area, Finding, note, problem, unknown, warning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Engine, Folder, Host

_MIN_FREE_BYTES: Final = 1024 * MIB
_MIN_FREE_BYTES_OF_DOCKER: Final = 5 * 1024 * MIB  # the four images have 2 GiB together
_MIN_FREE_INODES: Final = 20_000  # ten times as many as the worker needs (`host.disk`)
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "afs", "virtiofs"})


def judge(host: Host, engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Return all findings about the folders."""
    for folder in host.folders:
        yield from _folder(folder, engine, settings)
    yield from _links(host)


def _links(host: Host) -> Iterator[Finding]:
    """Judge whether code can be linked from the cache into work directories."""
    by_name = {folder.name: folder for folder in host.folders if folder.nearest}
    code, work = by_name.get("CODE_CACHE_DIR"), by_name.get("DOCKER_WORK_DIR_ROOT")
    if code is None or work is None:
        return
    # link(2), EXDEV: a link cannot cross mounts, even if both mounts show the same file system.
    if (code.device, code.mount) == (work.device, work.mount):
        yield Finding(Area.DISK, "code is linked, not copied, from CODE_CACHE_DIR to DOCKER_WORK_DIR_ROOT")
    else:
        yield note(
            Area.DISK,
            "CODE_CACHE_DIR and DOCKER_WORK_DIR_ROOT are on two mounts: code is copied for each container",
            f"DOCKER_WORK_DIR_ROOT={Path(code.path).parent / 'tasks'}, or another folder on the mount "
            f"{code.mount.point if code.mount else code.nearest}",
        )


def _folder(folder: Folder, engine: Engine, settings: Settings) -> Iterator[Finding]:
    place = f"{folder.name} ({folder.path})"
    if folder.problem is not None:
        yield unknown(Area.DISK, f"{place}: {folder.problem}")
        return
    if folder.refused is not None:
        yield problem(
            Area.DISK,
            folder.refused,
            f"choose another {folder.name}, or give {folder.path} to the worker's user and "
            f"chmod go-w {folder.path}",
        )
        return
    if folder.name != DOCKER_ROOT and folder.free_bytes < settings.min_free_disk_mb * MIB:
        yield problem(
            Area.DISK,
            f"{place}: only {_size(folder.free_bytes)} free: no jobs are taken below MIN_FREE_DISK_MB",
            f"free some space, or choose another {folder.name}",
        )
        return
    faults = [*_access(folder, place), *_free_space(folder, place), *_file_system(folder, place, engine)]
    yield from faults
    if not faults:
        yield _room_for_caches(folder, place, settings)


def _access(folder: Folder, place: str) -> Iterator[Finding]:
    if "ro" in _options(folder):
        yield problem(Area.DISK, f"{place} is mounted read-only", f"put {_setting(folder)} on another mount")
    elif folder.name != DOCKER_ROOT and not folder.writable:
        yield problem(
            Area.DISK,
            f"{place}: this user may not write to {folder.nearest}",
            f"install -d -m 700 -o USER {folder.path}, with the worker's user; or choose another "
            f"{folder.name}",
        )


def _free_space(folder: Folder, place: str) -> Iterator[Finding]:
    is_dockers = folder.name == DOCKER_ROOT
    least = _MIN_FREE_BYTES_OF_DOCKER if is_dockers else _MIN_FREE_BYTES
    if folder.free_bytes < least:
        finding = problem if folder.free_bytes < least // 8 else warning
        remedy = "docker system prune" if is_dockers else f"free some space, or choose another {folder.name}"
        yield finding(Area.DISK, f"{place}: only {_size(folder.free_bytes)} free", remedy)
    if folder.free_inodes is not None and folder.free_inodes < _MIN_FREE_INODES:
        yield warning(
            Area.DISK,
            f"{place}: only {folder.free_inodes:,} more files can be created (inodes)",
            f"put {_setting(folder)} on a file system with more inodes; df -i shows them",
        )


def _file_system(folder: Folder, place: str, engine: Engine) -> Iterator[Finding]:
    kind = folder.mount.kind if folder.mount else ""
    if kind in _REMOTE or kind.startswith("fuse"):
        yield warning(
            Area.DISK,
            f"{place} is on {kind}: locks, sockets and hard links work differently there, or not at all",
            f"put {_setting(folder)} on a local disk",
        )
    if folder.name == DOCKER_ROOT or "noexec" not in _options(folder):
        return
    # A bind mount in a container usually has its own options. But the options of a mount are locked in
    # another user namespace (mount_namespaces(7)).
    if engine.remaps_users:
        yield warning(
            Area.DISK,
            f"{place} is mounted noexec. A Docker that remaps user ids keeps this option in containers: C++ "
            "and Go programs do not start",
            f"mount -o remount,exec {folder.mount.point if folder.mount else '/'}",
        )
    else:
        yield note(Area.DISK, f"{place} is mounted noexec: containers do not inherit that")


def _room_for_caches(folder: Folder, place: str, settings: Settings) -> Finding:
    wanted = 2 * settings.code_cache_mb * MIB if folder.name == "CODE_CACHE_DIR" else 0
    if folder.free_bytes >= wanted:
        return Finding(Area.DISK, f"{place}: {_size(folder.free_bytes)} free")
    return note(
        Area.DISK,
        f"{place}: {_size(folder.free_bytes)} free; the caches may grow to {_size(wanted)} together, "
        "including their present size",
        f"CODE_CACHE_MB={max(1, folder.free_bytes // (3 * MIB))}, or free some space",
    )


def _options(folder: Folder) -> frozenset[str]:
    return folder.mount.options if folder.mount else frozenset()


def _setting(folder: Folder) -> str:
    return "data-root in /etc/docker/daemon.json" if folder.name == DOCKER_ROOT else folder.name


def _size(count: int) -> str:
    return f"{count / (1024 * MIB):.1f} GiB"
