"""Libraries and programs of the code that were built for another platform."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain import image
from nanoagent.languages.explain.facts import Platform
from nanoagent.languages.explain.rule import CODE_FOLDER, in_error
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.job import Runtime
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from nanoagent.languages.explain.facts import Facts, NativeFile
    from nanoagent.languages.explain.rule import Rule

_REINSTALL: Final = {
    Runtime.PYTHON: Text(
        "Install the package again for this platform: pip install --target . --platform"
        " manylinux2014_{machine}"
        " --python-version {python} --only-binary=:all: PACKAGE",
        "이 플랫폼에 맞게 패키지를 다시 설치하세요: pip install --target . --platform manylinux2014_{machine}"
        " --python-version {python} --only-binary=:all: PACKAGE",
    ),
    Runtime.NODEJS: Text(
        "Install the package again on Linux ({machine}, glibc), or with npm install --os=linux --cpu={cpu}"
        " --libc=glibc",
        "Linux({machine}, glibc)에서 패키지를 다시 설치하거나 npm install --os=linux --cpu={cpu}"
        " --libc=glibc로 설치하세요.",
    ),
}
_REBUILD: Final = Text("Build it for Linux ({machine}, glibc).", "Linux({machine}, glibc)용으로 빌드하세요.")
_CPUS: Final = {"x86_64": "x64", "aarch64": "arm64"}
_ARCHITECTURE: Final = Text(
    "{file} was built for {found}, but the run's machine is {machine}. {remedy}",
    "{file}은(는) {found}용인데 실행 환경은 {machine}입니다. {remedy}",
)
_SYSTEM: Final = Text(
    "{file} was built for {found}, but functions run on Linux. {remedy}",
    "{file}은(는) {found}용인데 함수는 Linux에서 실행됩니다. {remedy}",
)
_MUSL: Final = Text(
    "{file} was built for musl (Alpine Linux), but the image has glibc. {remedy}",
    "{file}은(는) musl(Alpine Linux)용인데 이미지에는 glibc가 있습니다. {remedy}",
)
_GLIBC: Final = Text(
    "{file} needs glibc {needed}, but the image has glibc {present}. Build it on an older Linux, or use a"
    " package for manylinux.",
    "{file}에는 glibc {needed}이(가) 필요하지만 이미지에는 glibc {present}이(가) 있습니다."
    " 더 오래된 Linux에서 빌드하거나 manylinux 패키지를 쓰세요.",
)
_PYTHON_VERSION: Final = Text(
    "{file} was built for Python {found}, but the image has Python {python}. {remedy}",
    "{file}은(는) Python {found}용인데 이미지에는 Python {python}이(가) 있습니다. {remedy}",
)
_NODE_VERSION: Final = Text(
    "The addon {file} was built for another version of Node.js. The image has Node.js {node}. Install the"
    " package"
    " again with Node.js {node}, or run npm rebuild with it.",
    "애드온 {file}은(는) 다른 버전의 Node.js용입니다. 이미지에는 Node.js {node}이(가) 있습니다."
    " Node.js {node}에서 패키지를 다시 설치하거나 npm rebuild를 실행하세요.",
)
_LIBRARY: Final = Text(
    "The image does not have the shared library {library}. Use a package that brings its libraries with it,"
    " or"
    " put the library into the zip.",
    "이미지에 공유 라이브러리 {library}이(가) 없습니다. 라이브러리를 포함한 패키지를 쓰거나 zip에 넣으세요.",
)
_LIBRARY_OPENCV: Final = Text(
    "The image does not have the shared library {library}, because a run has no screen. Use the package"
    " opencv-python-headless instead of opencv-python.",
    "실행에는 화면이 없어서 이미지에 공유 라이브러리 {library}이(가) 없습니다. opencv-python 대신"
    " opencv-python-headless 패키지를 쓰세요.",
)
_NOT_EXECUTABLE: Final = Text(
    "{file} is not marked as executable in the zip. Make the zip on Linux or macOS after chmod +x {file},"
    " or call"
    " os.chmod before you start it.",
    "zip에서 {file}에 실행 권한이 없습니다. chmod +x {file} 뒤에 Linux나 macOS에서 zip을 만들거나,"
    " 실행하기 전에 권한을 바꾸세요.",
)
_PYTHON: Final = f"{image.PYTHON[0]}.{image.PYTHON[1]}"
# PEP 3149; `.cp311-win_amd64.pyd` on Windows. `.abi3.so` and `.so` fit every version.
_TAG: Final = re.compile(
    r"\.(?:cpython-(?P<version>\d{2,4})[a-z]?-?(?P<rest>[\w-]{0,60})\.so|cp(?P<windows>\d{2,4})-[\w-]{1,40}\.pyd)$"
)


def extension_for_another(name: str, facts: Facts) -> Hint | None:
    """Return the hint for an extension module that Python has ignored, because it is for another platform.

    Args:
        name: The name of the module.
        facts: The facts.
    """
    prefix = name.replace(".", "/")
    found = sorted(
        file
        for file in facts.tree.files
        if (file.startswith(f"{prefix}.") or f"/{prefix}." in file) and file.endswith((".so", ".pyd"))
    )
    for file in found:
        if hint := _by_tag(file, facts) or _by_header(file, facts):
            return hint
    return None


def _by_tag(file: str, facts: Facts) -> Hint | None:
    """Return the hint that follows from the name of an extension module."""
    tag = _TAG.search(file)
    if tag is None:
        return None
    version, rest = tag["version"], tag["rest"]
    if tag["windows"] or rest == "darwin":
        return _for_another_system(file, Platform.WINDOWS if tag["windows"] else Platform.MACOS, facts)
    if version != f"{image.PYTHON[0]}{image.PYTHON[1]}":
        found = f"{version[0]}.{version[1:]}"
        text = _PYTHON_VERSION.format(file=file, found=found, python=_PYTHON, remedy=_remedy(facts))
        return Hint(Cause.NATIVE_PYTHON_VERSION, text)
    if rest.endswith("musl"):
        return Hint(Cause.NATIVE_MUSL, _MUSL.format(file=file, remedy=_remedy(facts)))
    if rest and not rest.startswith(facts.machine):
        return _for_another_machine(file, rest.partition("-")[0], facts)
    return None


def _by_header(file: str, facts: Facts) -> Hint | None:
    """Return the hint that follows from the header of a file."""
    header = (facts.tree.native or {}).get(file)
    if header is None:
        return None
    if header.platform is not Platform.LINUX:
        return _for_another_system(file, header.platform, facts)
    if header.machine and header.machine != facts.machine:
        return _for_another_machine(file, header.machine, facts)
    return _by_library(file, header, facts)


def _by_library(file: str, header: NativeFile, facts: Facts) -> Hint | None:
    if header.musl:
        return Hint(Cause.NATIVE_MUSL, _MUSL.format(file=file, remedy=_remedy(facts)))
    if header.glibc is not None and header.glibc > image.GLIBC:
        return Hint(Cause.NATIVE_GLIBC, _glibc(file, header.glibc))
    return None


def _glibc(file: str, needed: tuple[int, int]) -> Text:
    present = image.GLIBC
    return _GLIBC.format(file=file, needed=f"{needed[0]}.{needed[1]}", present=f"{present[0]}.{present[1]}")


def _for_another_system(file: str, platform: Platform, facts: Facts) -> Hint:
    text = _SYSTEM.format(file=file, found=platform, remedy=_remedy(facts))
    return Hint(Cause.NATIVE_OPERATING_SYSTEM, text)


def _for_another_machine(file: str, machine: str, facts: Facts) -> Hint:
    text = _ARCHITECTURE.format(file=file, found=machine, machine=facts.machine, remedy=_remedy(facts))
    return Hint(Cause.NATIVE_ARCHITECTURE, text)


def _remedy(facts: Facts) -> Text:
    text = _REINSTALL.get(facts.runtime, _REBUILD)
    return text.format(machine=facts.machine, python=_PYTHON, cpu=_CPUS.get(facts.machine, facts.machine))


# --- errors of the loader, and of the start of programs


def _loaded(found: re.Match[str], facts: Facts) -> Hint | None:
    return _by_header(path_in_code(found["file"]), facts)


def _library_missing(found: re.Match[str], facts: Facts) -> Hint | None:
    library = found["library"]
    if library.startswith("libc.musl"):
        file = next((f for f, header in sorted((facts.tree.native or {}).items()) if header.musl), library)
        return Hint(Cause.NATIVE_MUSL, _MUSL.format(file=file, remedy=_remedy(facts)))
    if any(file.rpartition("/")[2] == library for file in facts.tree.files):
        return None
    opencv = library in {"libGL.so.1", "libgthread-2.0.so.0"} and any("cv2/" in f for f in facts.tree.files)
    text = _LIBRARY_OPENCV if opencv else _LIBRARY
    return Hint(Cause.SYSTEM_LIBRARY_MISSING, text.format(library=library))


def _glibc_too_old(found: re.Match[str], _: Facts) -> Hint | None:
    needed = (int(found["major"]), int(found["minor"]))
    return Hint(Cause.NATIVE_GLIBC, _glibc(path_in_code(found["file"]), needed))


def _other_node(found: re.Match[str], _: Facts) -> Hint:
    file = path_in_code(found["file"])
    return Hint(Cause.NATIVE_NODE_VERSION, _NODE_VERSION.format(file=file, node=image.NODE))


def _not_started(found: re.Match[str], facts: Facts) -> Hint | None:
    file = path_in_code(found["file"])
    if file not in facts.tree.files or file in facts.tree.executable:
        return None
    return Hint(Cause.NOT_EXECUTABLE, _NOT_EXECUTABLE.format(file=file))


def path_in_code(path: str) -> str:
    """Return a path of the code relative to the code's folder."""
    return path.removeprefix(f"{CODE_FOLDER}/").removeprefix("./")


_PATH: Final = r"(?P<file>[\w@+./-]{1,200}+)"  # followed by another character, so it never goes back

RULES: Final[tuple[Rule, ...]] = (
    in_error(
        rf"version `GLIBC_(?P<major>\d{{1,3}})\.(?P<minor>\d{{1,3}})' not found \(required by {_PATH}\)",
        _glibc_too_old,
    ),
    in_error(
        rf"/work/{_PATH}: (?:cannot open shared object file|invalid ELF header|wrong ELF class)",
        _loaded,
        marks=("cannot open shared object file", "invalid ELF header", "wrong ELF class"),
    ),
    in_error(
        r"\b(?P<library>lib[\w.+-]{1,60}+): cannot open shared object file",
        _library_missing,
        marks=("cannot open shared object file",),
    ),
    in_error(
        rf"The module '{_PATH}'\nwas compiled against a different Node\.js version",
        _other_node,
        marks=("compiled against a different Node",),
    ),
    in_error(
        rf"\[Errno 8\] Exec format error: '{_PATH}'"
        rf"|fork/exec {_PATH.replace('file', 'other')}: exec format error",
        lambda found, facts: _by_header(path_in_code(found["file"] or found["other"]), facts),
        marks=("xec format error",),
    ),
    in_error(
        rf"spawn(?:Sync)? {_PATH} (?:ENOEXEC|Unknown system error -8)",
        _loaded,
        marks=("ENOEXEC", "Unknown system error"),
    ),
    in_error(rf"\[Errno 13\] Permission denied: '{_PATH}'", _not_started),
    in_error(rf"spawn(?:Sync)? {_PATH} EACCES", _not_started, marks=("EACCES",)),
    in_error(rf"fork/exec {_PATH}: permission denied", _not_started),
    in_error(
        rf"sh: \d{{1,5}}: {_PATH}: Permission denied",
        _not_started,
        marks=("Permission denied",),
        of_children=True,
    ),
)
