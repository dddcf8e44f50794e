"""Fetches packages with the usual tools, and packs them with a program.

The registries are those in the configuration of pip, npm and apt on this machine.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from nanoagent.languages.recipes import RECIPES
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.libraries.catalogue import Library

_DEADLINE_S: Final = 600
_SHOWN_CHARACTERS: Final = 300
_PYTHON: Final = "3.13"  # the version in the Python image
_GO: Final = "1.24"


class InstallError(Exception):
    """A package could not be fetched. The message quotes the tool."""


def pack(library: Library, folder: Path) -> Path:
    """Fetch the library's packages, write its program, and zip both with Info-ZIP.

    Args:
        library: The library.
        folder: An empty folder for the tree and the zip.

    Raises:
        InstallError: A tool is missing or failed.
    """
    tree = folder / "tree"
    tree.mkdir(parents=True)
    fetch(library, tree)
    (tree / RECIPES[library.runtime].entry).write_text(library.program)
    archive = folder / "code.zip"
    _run("zip", "--quiet", "--recurse-paths", "--symlinks", str(archive), ".", cwd=tree)
    return archive


def fetch(library: Library, tree: Path) -> None:
    """Fetch the library's packages.

    Args:
        library: The library.
        tree: An empty folder for the packages.

    Raises:
        InstallError: A tool is missing or failed.
    """
    _INSTALLERS[library.runtime](library, tree)


def _install_python(library: Library, tree: Path) -> None:
    if not library.packages:
        return
    machine = platform.machine()
    _run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--only-binary=:all:", f"--python-version={_PYTHON}", "--implementation=cp"),
        *(f"--platform=manylinux2014_{machine}", f"--platform=manylinux_2_28_{machine}"),
        *("--target", str(tree), *library.packages),
        cwd=tree,
    )


def _install_nodejs(library: Library, tree: Path) -> None:
    if not library.packages:
        return
    (tree / "package.json").write_text('{"private": true}\n')
    if library.layout == "pnpm":
        pnpm = ("npm", "exec", "--yes", "pnpm@9", "--")
        _run(*pnpm, "add", "--ignore-scripts", "--package-import-method=copy", *library.packages, cwd=tree)
        return
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    _run("npm", "install", *quiet, *library.packages, cwd=tree)


def _install_cpp(library: Library, tree: Path) -> None:
    """Copy the headers of Debian packages to the root of the tree, which is on the include path."""
    for package in library.packages:
        unpacked = _debian(package, tree.parent)
        shutil.copytree(unpacked / "usr/include", tree, dirs_exist_ok=True)


def _install_go(library: Library, tree: Path) -> None:
    """Copy modules from Debian's source packages into `vendor`, so that no Go proxy is needed."""
    if not library.packages:
        return
    requires, vendored = [], []
    for package in library.packages:
        name, _, module = package.partition("=")
        path, _, version = module.partition("@")
        unpacked = _debian(name, tree.parent)
        source = unpacked / "usr/share/gocode/src" / path
        shutil.copytree(source, tree / "vendor" / path, ignore=shutil.ignore_patterns("*_test.go", "go.mod"))
        requires.append(f"require {path} {version}\n")
        vendored.append(f"# {path} {version}\n## explicit\n{path}\n")
    (tree / "go.mod").write_text(f"module function\n\ngo {_GO}\n\n{''.join(requires)}")
    (tree / "vendor/modules.txt").write_text("".join(vendored))


def _debian(package: str, folder: Path) -> Path:
    unpacked = folder / package
    _run("apt-get", "download", "--quiet", package, cwd=folder)
    (archive,) = folder.glob(f"{package}_*.deb")
    _run("dpkg-deb", "--extract", str(archive), str(unpacked), cwd=folder)
    return unpacked


def _run(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - only texts of the catalogue
            command, cwd=cwd, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
        )
    except FileNotFoundError as exc:
        raise InstallError(f"{command[0]} is not on PATH") from exc
    except subprocess.TimeoutExpired as exc:
        raise InstallError(f"{command[0]} did not finish within {_DEADLINE_S} s") from exc
    if done.returncode != 0:
        raise InstallError(f"{command[0]} failed: {done.stderr.strip()[-_SHOWN_CHARACTERS:]}")


_INSTALLERS: Final = {
    Runtime.PYTHON: _install_python,
    Runtime.NODEJS: _install_nodejs,
    Runtime.CPP: _install_cpp,
    Runtime.GO: _install_go,
}
