"""Packages of PyPI and npm as a user would put them into a zip: the official clients, unmodified.

They are installed into the checkout's state folder, once for each content of the lists in tests/e2e/packages.
The registries are those of the local pip and npm configuration.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[3]
LISTS: Final = ROOT / "tests/e2e/packages"
_CACHE: Final = ROOT / ".nanoagent/packages"
_DEADLINE_S: Final = 240
_SHOWN: Final = 600  # characters of the end of an installer's output


class UnobtainableError(Exception):
    """An installer is missing or has failed."""


def for_python() -> Path:
    """Return a folder with Python packages for the root of a zip.

    Raises:
        UnobtainableError: The packages cannot be installed.
    """
    return _installed("python", (LISTS / "python.txt",), _install_python)


def for_nodejs() -> Path:
    """Return a folder with `node_modules`.

    Raises:
        UnobtainableError: The packages cannot be installed.
    """
    lists = (LISTS / "package.json", LISTS / "package-lock.json")
    return _installed("nodejs", lists, _install_nodejs)


def _installed(name: str, lists: tuple[Path, ...], install: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in lists)).hexdigest()[:12]
    folder = _CACHE / f"{name}-{digest}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may install the same packages
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=_CACHE))
            try:
                install(unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _install_python(folder: Path) -> None:
    """Install packages for the interpreter of the image, not for this one."""
    machine = platform.machine()
    _run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--no-deps", "--require-hashes", "--no-compile", "--only-binary=:all:", "--python-version=3.13"),
        *(
            "--implementation=cp",
            f"--platform=manylinux2014_{machine}",
            f"--platform=manylinux_2_28_{machine}",
        ),
        *("--target", str(folder), "--requirement", str(LISTS / "python.txt")),
        cwd=folder,
    )
    shutil.rmtree(folder / "bin", ignore_errors=True)


def _install_nodejs(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(LISTS / name, folder)
    _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", cwd=folder)


def _run(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
        )
    except FileNotFoundError as exc:
        raise UnobtainableError(f"there is no {command[0]} on PATH") from exc
    except subprocess.TimeoutExpired as exc:
        raise UnobtainableError(f"{command[0]} had nothing after {_DEADLINE_S} s") from exc
    if done.returncode != 0:
        raise UnobtainableError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-_SHOWN:]}")
