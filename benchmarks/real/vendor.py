"""Fetches the packages of a function once, and keeps them in a folder."""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.libraries import install
from benchmarks.libraries.catalogue import Library

if TYPE_CHECKING:
    from benchmarks.real.catalogue import RealFunction

CACHE: Final = Path(__file__).resolve().parents[2] / ".nanoagent" / "bench-real"


def packages_of(function: RealFunction, cache: Path = CACHE) -> Path | None:
    """Return the folder with the packages of a function; None if it has no packages.

    Byte code is left out: the installer of packages makes it for another version of Python.

    Args:
        function: The function.
        cache: The folder that keeps packages. It is created if it does not exist.

    Raises:
        InstallError: A package could not be fetched.
    """
    if not function.packages:
        return None
    identity = json.dumps([function.runtime, sorted(function.packages), platform.machine()])
    kept = cache / f"{function.runtime}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if kept.exists():
        return kept
    made = cache / f"unfinished-{secrets.token_hex(6)}"
    made.mkdir(parents=True)
    try:
        install.fetch(Library(function.name, function.runtime, function.packages, program=""), made)
        for folder in list(made.rglob("__pycache__")):
            shutil.rmtree(folder)
        if not kept.exists():  # another benchmark may have been faster
            made.rename(kept)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return kept
