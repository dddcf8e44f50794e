"""Errors of files, commands, threads, text and time zones, in all languages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain.native import path_in_code
from nanoagent.languages.explain.rule import CODE_FOLDER, in_error
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.result import OUTCOMES, ErrorType
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from nanoagent.languages.explain.facts import Facts
    from nanoagent.languages.explain.rule import Rule

_READ_ONLY: Final = Text(
    "The run cannot write to {path}. It can write to /tmp, /output, /dev/shm and its working directory."
    " Files in"
    " /output become output files of the job.",
    "실행은 {path}에 쓸 수 없습니다. /tmp, /output, /dev/shm, 작업 디렉터리에 쓸 수 있습니다."
    " /output의 파일은 작업의 출력 파일이 됩니다.",
)
_LOCAL_PATH: Final = Text(
    "The path {path} does not exist in a run. Put the file into the zip and open it with a path relative to"
    " the"
    " working directory. New files belong to /tmp or /output.",
    "실행에는 {path} 경로가 없습니다. 파일을 zip에 넣고 작업 디렉터리에서 시작하는 상대 경로로 여세요."
    " 새 파일은 /tmp나 /output에 만드세요.",
)
_CASE: Final = Text(
    "The program opens {name}, but the zip has {found}. Linux distinguishes upper and lower case.",
    "프로그램은 {name} 파일을 여는데 zip에는 {found}이(가) 있습니다. Linux는 대소문자를 구별합니다.",
)
_COMMAND: Final = Text(
    "The image does not have the command {name}. Put a program for Linux ({machine}) into the zip and start"
    " it by"
    " its path, or use a library instead.",
    "이미지에 {name} 명령이 없습니다. Linux({machine})용 프로그램을 zip에 넣고 경로로 실행하거나,"
    " 대신 라이브러리를 쓰세요.",
)
_INSTALL: Final = Text(
    "A run cannot install packages: the image has no {name}. Install them in the code's folder before you"
    " make the"
    " zip.",
    "실행 중에는 패키지를 설치할 수 없습니다. 이미지에 {name}이(가) 없습니다."
    " zip을 만들기 전에 코드 폴더에 설치하세요.",
)
_OPEN_FILES: Final = Text(
    "A process may have {most} files and connections open at the same time (MAX_OPEN_FILES={most}). Close"
    " them after use, or ask the operator to raise MAX_OPEN_FILES.",
    "한 프로세스는 파일과 연결을 동시에 {most}개까지 열 수 있습니다(MAX_OPEN_FILES={most})."
    " 다 쓴 것은 닫거나 MAX_OPEN_FILES를 올려 달라고 요청하세요.",
)
_TIME_ZONE: Final = Text(
    "There is no time zone with this name. Names are those of the IANA database, such as Asia/Seoul or UTC.",
    "이런 이름의 시간대는 없습니다. Asia/Seoul이나 UTC처럼 IANA 데이터베이스의 이름을 쓰세요.",
)
_FULL: Final = Text(
    "The disk space of the run is used up. Files in /tmp, /output and the working directory count as"
    " memory, and"
    " each folder has a limit. Delete temporary files, or process the data in parts.",
    "실행의 디스크 공간을 모두 썼습니다. /tmp, /output, 작업 디렉터리의 파일은 메모리로 계산되고 폴더마다"
    " 한도가 있습니다. 임시 파일을 지우거나 데이터를 나누어 처리하세요.",
)
LOCALE: Final = Text(
    "The image does not have this locale. It has C.UTF-8, en_US.UTF-8 and ko_KR.UTF-8.",
    "이미지에 이 로캘이 없습니다. C.UTF-8, en_US.UTF-8, ko_KR.UTF-8이 있습니다.",
)
_INSTALLERS: Final = frozenset({"pip", "pip3", "npm", "npx", "yarn", "pnpm", "apt", "apt-get", "conda", "uv"})
_WRITABLE: Final = ("/tmp/", "/output/", "/work/", "/dev/")  # noqa: S108 - in the container
# The folders that an image has besides the writable ones. Every other absolute path is of another machine.
_SYSTEM: Final = re.compile(
    r"/(?:bin|boot|dev|etc|input|lib(?:64)?|proc|run|sbin|sys|tmp|usr|output|work)(?:/|$)"
)
_VAR_TASK: Final = "/var/task"  # the code's folder in AWS Lambda


def _read_only(found: re.Match[str], _: Facts) -> Hint | None:
    path = next((path for path in found.groups() if path), "")
    return Hint(Cause.READ_ONLY_PATH, _READ_ONLY.format(path=path)) if path else None


def _denied(found: re.Match[str], facts: Facts) -> Hint | None:
    path = next((path for path in found.groups() if path), "")
    if not path.startswith("/") or path.startswith(_WRITABLE) or path_in_code(path) in facts.tree.files:
        return None
    return Hint(Cause.READ_ONLY_PATH, _READ_ONLY.format(path=path))


def _not_found(found: re.Match[str], facts: Facts) -> Hint | None:
    path = next((path for path in found.groups() if path), "")
    if re.match(r"[A-Za-z]:[\\/]", path):
        return Hint(Cause.LOCAL_PATH, _LOCAL_PATH.format(path=path))
    if path.startswith("/") and not path.startswith(f"{CODE_FOLDER}/"):
        foreign = not _SYSTEM.match(path) and (not path.startswith("/var/") or path.startswith(_VAR_TASK))
        return Hint(Cause.LOCAL_PATH, _LOCAL_PATH.format(path=path)) if foreign else None
    name = path_in_code(path)
    alike = [file for file in facts.tree.files if file.lower() == name.lower()]
    if alike and name not in alike:
        return Hint(Cause.FILE_NAME_CASE, _CASE.format(name=name, found=min(alike)))
    return None


def _command(found: re.Match[str], facts: Facts) -> Hint | None:
    name = next((name for name in found.groups() if name), "")
    if name in _INSTALLERS:
        return Hint(Cause.RUNTIME_INSTALL, _INSTALL.format(name=name))
    if not name or "/" in name or name in facts.tree.files:
        return None
    return Hint(Cause.COMMAND_MISSING, _COMMAND.format(name=name, machine=facts.machine))


def _python_command(found: re.Match[str], facts: Facts) -> Hint | None:
    return _command(found, facts) if "in _execute_child" in facts.block else None


_QUOTED: Final = r"'(?P<{name}>[^'\n]{{1,300}}+)'"
_NAME: Final = r"(?P<{name}>[\w.+/-]{{1,100}}+)"


def _q(name: str) -> str:
    return _QUOTED.format(name=name)


def _n(name: str) -> str:
    return _NAME.format(name=name)


RULES: Final[tuple[Rule, ...]] = (
    in_error(rf"\[Errno 2\] No such file or directory: {_q('a')}", _python_command),
    in_error(
        rf"spawn(?:Sync)? {_n('node')} ENOENT"
        rf"|exec: \"{_n('go')}\": executable file not found"
        rf"|sh: (?:line )?\d{{1,5}}: {_n('sh')}: (?:command )?not found",
        _command,
        marks=("ENOENT", "executable file not found", "not found"),
        of_children=True,
    ),
    in_error(
        rf"\[Errno 30\] Read-only file system: {_q('python')}"
        rf"|EROFS: read-only file system, \w{{1,20}} {_q('node')}"
        r"|(?:open|mkdir|create|remove|rename|unlink) (?P<go>/[^\s:]{1,300}): read-only file system"
        r"|filesystem error: [^\n\[]{1,200}Read-only file system \[(?P<cpp>[^\]\n]{1,300})\]",
        _read_only,
        marks=("Read-only file system", "read-only file system"),
    ),
    in_error(
        rf"\[Errno 13\] Permission denied: {_q('python')}"
        rf"|EACCES: permission denied, (?:open|mkdir|unlink|rmdir|rename|copyfile) {_q('node')}"
        r"|(?:open|mkdir|create|remove|rename|unlink) (?P<go>/[^\s:]{1,300}): permission denied"
        r"|filesystem error: [^\n\[]{1,200}Permission denied \[(?P<cpp>[^\]\n]{1,300})\]",
        _denied,
        marks=("Permission denied", "permission denied"),
    ),
    in_error(
        rf"\[Errno 2\] No such file or directory: {_q('python')}"
        rf"|ENOENT: no such file or directory, \w{{1,20}} {_q('node')}"
        r"|(?:open|mkdir|create|stat|chdir|readdirent) (?P<go>[^\s:]{1,300}): no such file or directory"
        r"|filesystem error: [^\n\[]{1,200}No such file or directory \[(?P<cpp>[^\]\n]{1,300})\]",
        _not_found,
        marks=("No such file or directory", "no such file or directory"),
    ),
    in_error(
        r"EMFILE: too many open files|[Tt]oo many open files",
        lambda _, facts: Hint(Cause.OPEN_FILES, _OPEN_FILES.format(most=facts.open_files)),
        marks=("oo many open files",),
    ),
    in_error(
        r"RuntimeError: can't start new thread|pthread_create failed \(EAGAIN\)|spawn \w{1,50} EAGAIN"
        r"|std::system_error'\n  what\(\):  Resource temporarily unavailable",
        lambda _, __: Hint(Cause.PROCESSES, OUTCOMES[ErrorType.PROCESS_LIMIT].hint or Text("", "")),
        marks=("can't start new thread", "EAGAIN", "Resource temporarily unavailable"),
    ),
    in_error(
        r"\[Errno 28\] No space left|ENOSPC: no space left|: no space left on device",
        (Cause.DISK_FULL, _FULL),
        marks=("o space left",),
    ),
    in_error(
        r"ZoneInfoNotFoundError|UnknownTimeZoneError"
        r"|RangeError: Invalid time zone specified"
        r"|unknown time zone "
        r"|tzdb: cannot locate zone",
        (Cause.TIME_ZONE, _TIME_ZONE),
        marks=("ZoneInfoNotFound", "UnknownTimeZone", "time zone", "cannot locate zone"),
    ),
)
