"""Finds the hint for a failed build, from the messages of compiler and linker, and the names of the files.

Each language has a table of patterns and hints. The patterns match messages of g++ 14, GNU ld and Go 1.24;
tests/integration/test_builds.py compares them with real builds. The messages may be hostile input, so all
repetitions in the patterns are bounded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from nanoagent.model.job import Runtime
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_READ_CHARACTERS: Final = 64 * 1024


class _Rule(NamedTuple):
    """A pattern in the messages, and its hint.

    Attributes:
        pattern: The pattern.
        hint: Takes the match and the names of the files. Returns None if the files show another cause.
    """

    pattern: re.Pattern[str]
    hint: Callable[[re.Match[str], Collection[str]], Text | None]


def build_hint(runtime: Runtime, messages: str, files: Collection[str]) -> Text | None:
    """Return the hint of the first rule that matches the messages.

    Args:
        runtime: The language of the code.
        messages: The messages of the compiler or linker.
        files: Paths of the code's files, relative to its root.

    Returns:
        None if no rule matches.
    """
    text = messages[:_READ_CHARACTERS]
    for rule in _RULES.get(runtime, ()):
        match = rule.pattern.search(text)
        hint = rule.hint(match, files) if match else None
        if hint is not None:
            return hint
    return None


def _always(text: Text) -> Callable[[re.Match[str], Collection[str]], Text]:
    """Return a rule's hint that only inserts the pattern's named groups into the text."""
    return lambda match, _: text.format(**match.groupdict())


NOT_UTF8: Final = Text(
    en="A source file is not UTF-8. Save it as UTF-8 (not UTF-16 or CP949), and make the zip again.",
    ko="소스 파일이 UTF-8이 아닙니다. UTF-8로 저장하고(UTF-16이나 CP949가 아님) zip을 다시 만드세요.",
)

# --- C++

_HEADER_ELSEWHERE: Final = Text(
    en=(
        "{found} is in the zip, but the compiler does not search its folder for {name}. It searches the "
        "including file's folder, the root, include and src. "
        'Write #include "{found}", or put -I{folder} into compile_flags.txt.'
    ),
    ko=(
        "{found} 파일은 zip에 있지만 {name}을(를) 찾는 위치"
        "(포함하는 파일의 폴더, 루트, include, src)에 없습니다. "
        '#include "{found}"로 쓰거나 compile_flags.txt에 -I{folder}을(를) 넣으세요.'
    ),
)
_HEADER_MISSING: Final = Text(
    en=(
        "Neither the zip nor the image has {name}. The image has only the standard libraries of C and C++, "
        "and ai_client.hpp. Put other libraries into the zip, with their sources."
    ),
    ko=(
        "zip에도 이미지에도 {name}이(가) 없습니다. "
        "이미지에는 C와 C++ 표준 라이브러리와 ai_client.hpp만 있습니다. "
        "다른 라이브러리는 소스와 함께 zip에 넣으세요."
    ),
)
_TWO_MAINS: Final = Text(
    en=(
        "{first} and {second} both define main, and main.cpp does not. A program must have one main. Put "
        "it into main.cpp, and remove the files of other programs from the zip."
    ),
    ko=(
        "{first}와(과) {second}이(가) 모두 main을 정의하고 main.cpp에는 main이 없습니다. "
        "main은 하나여야 합니다. "
        "main.cpp에 넣고, 다른 프로그램의 파일은 zip에서 빼세요."
    ),
)
_TWO_DEFINITIONS: Final = Text(
    en=(
        "{first} and {second} both define {name}. All C and C++ sources of the zip are one program. Keep one "
        "definition, or make it inline in a header."
    ),
    ko=(
        "{first}와(과) {second}이(가) 모두 {name}을(를) 정의합니다. "
        "zip의 모든 C, C++ 소스는 하나의 프로그램입니다. "
        "정의를 하나만 두거나 헤더에서 inline으로 만드세요."
    ),
)
_NO_MAIN: Final = Text(
    en="No source of the zip defines main. The program starts with int main() in main.cpp.",
    ko="zip의 어떤 소스도 main을 정의하지 않습니다. 프로그램은 main.cpp의 int main()에서 시작합니다.",
)
_C_NAME: Final = Text(
    en=(
        'No C++ source defines {name}. If a C source ({files}) defines it, declare it in an extern "C" '
        "{{ … }} block, or rename the C file to .cpp."
    ),
    ko=(
        "{name}을(를) 정의하는 C++ 소스가 없습니다. C 소스({files})에 정의되어 있다면 "
        'extern "C" {{ … }} 안에서 선언하거나 파일 이름을 .cpp로 바꾸세요.'
    ),
)
_UNDEFINED: Final = Text(
    en=(
        "No source of the zip defines {name}. Sources are *.cpp, *.cc, *.cxx, *.c++ and *.c. To link a "
        "library of the image, put a line such as -lm into compile_flags.txt."
    ),
    ko=(
        "zip의 어떤 소스도 {name}을(를) 정의하지 않습니다. 소스는 *.cpp, *.cc, *.cxx, *.c++, *.c입니다. "
        "이미지의 라이브러리는 compile_flags.txt에 -lm 같은 줄로 연결합니다."
    ),
)
_STANDARD: Final = Text(
    en=(
        "The code needs C++{version}, but it is compiled as C++20. Put the line -std=c++{version} into "
        "compile_flags.txt at the root."
    ),
    ko=(
        "이 코드에는 C++{version}이(가) 필요하지만 C++20으로 컴파일됩니다. 루트의 compile_flags.txt에 "
        "-std=c++{version} 줄을 넣으세요."
    ),
)
_MAX_NAMED: Final = 3


def _missing_header(match: re.Match[str], files: Collection[str]) -> Text:
    name = match["name"]
    last = name.rpartition("/")[2]
    found = sorted(file for file in files if file == name or file.endswith(f"/{name}"))
    found = found or sorted(file for file in files if file.rpartition("/")[2] == last)
    if not found:
        return _HEADER_MISSING.format(name=name)
    folder = found[0].removesuffix(name).rstrip("/") or found[0].rpartition("/")[0] or "."
    return _HEADER_ELSEWHERE.format(name=name, found=found[0], folder=folder)


def _defined_twice(match: re.Match[str], files: Collection[str]) -> Text:
    text = _TWO_MAINS if match["name"] == "main" else _TWO_DEFINITIONS
    first, second = sorted(_path_of(match[group], files) for group in ("first", "second"))
    return text.format(first=first, second=second, name=match["name"])


def _path_of(name: str, files: Collection[str]) -> str:
    """Return the path of a file that the linker names without its folder, if only one file has the name."""
    found = [file for file in files if file == name or file.endswith(f"/{name}")]
    return found[0] if len(found) == 1 else name


def _undefined(match: re.Match[str], files: Collection[str]) -> Text:
    name = match["name"]
    in_c = sorted(file for file in files if file.endswith(".c"))
    if in_c and name.endswith(")"):
        return _C_NAME.format(name=name, files=", ".join(in_c[:_MAX_NAMED]))
    return _UNDEFINED.format(name=name)


_CPP: Final = (
    _Rule(re.compile(r": error: stray '\\[2-3][0-7]{2}' in program"), _always(NOT_UTF8)),
    _Rule(
        re.compile(r"fatal error: (?P<name>[^\n]{1,300}): No such file or directory"),
        _missing_header,
    ),
    _Rule(
        re.compile(
            r"(?:available from|available with|only available with) [^\n]{0,40}\+\+(?P<version>\d\d)\b",
        ),
        _always(_STANDARD),
    ),
    _Rule(
        re.compile(
            r"^(?:[^\s:]{1,200}ld: )?(?P<second>[^\n:]{1,300}):\([^)\n]{1,100}\): "
            r"multiple definition of [`'](?P<name>[^'\n]{1,300})'; "
            r"(?:[^\n:]{1,300}:)?(?P<first>[^\n:]{1,300}):\([^)\n]{1,100}\): first defined here",
            re.MULTILINE,
        ),
        _defined_twice,
    ),
    _Rule(re.compile(r"undefined reference to [`']main'"), _always(_NO_MAIN)),
    _Rule(re.compile(r"undefined reference to [`'](?P<name>[^'\n]{1,300})'"), _undefined),
)

# --- Go

_CGO: Final = Text(
    en=(
        '{file} imports "C", but cgo is off: the image builds Go code without a C compiler. Use a package in '
        "pure Go (for SQLite, modernc.org/sqlite)."
    ),
    ko=(
        '{file}에서 "C"를 import하지만 cgo가 꺼져 있습니다. Go 코드는 C 컴파일러 없이 빌드됩니다. '
        "순수 Go 패키지를 쓰세요(SQLite는 modernc.org/sqlite)."
    ),
)
_GO_MODULE: Final = Text(
    en="Builds have no network. Run `go mod vendor`, and put go.mod, go.sum and vendor into the zip.",
    ko=(
        "빌드는 네트워크를 쓸 수 없습니다. `go mod vendor`를 실행하고 "
        "go.mod, go.sum, vendor 폴더를 zip에 넣으세요."
    ),
)
_GO_VERSION: Final = Text(
    en=(
        "go.mod requires Go {wanted}, but the image has Go {present}. Write go {present} or older into "
        "go.mod."
    ),
    ko=(
        "go.mod는 Go {wanted}을(를) 요구하지만 이미지에는 Go {present}이(가) 있습니다. "
        "go.mod에 {present} 이하를 쓰세요."
    ),
)
_GO_PACKAGES: Final = Text(
    en=(
        "{first} and {second} are in one folder, but in two packages. All files at the root must be in "
        "package main. Put other packages into separate folders."
    ),
    ko=(
        "{first}와(과) {second}이(가) 같은 폴더에 있지만 패키지가 다릅니다. "
        "루트의 모든 파일은 package main이어야 하고, 다른 패키지는 별도의 폴더에 넣으세요."
    ),
)
_GO_TWO_DEFINITIONS: Final = Text(
    en="{first} and {second} both define {name}. The files at the root are one program. Keep one definition.",
    ko=(
        "{first}와(과) {second}이(가) 모두 {name}을(를) 정의합니다. "
        "루트의 파일은 하나의 프로그램입니다. 하나만 두세요."
    ),
)
_GO_OWN_PACKAGE: Final = Text(
    en=(
        "Import the folder {name} of the zip with the path of its module: {module}/{name}. Without a go.mod, "
        "the name of the module is function."
    ),
    ko=(
        "zip의 {name} 폴더는 모듈 경로로 import합니다: {module}/{name}. "
        "go.mod가 없으면 모듈 이름은 function입니다."
    ),
)


def _own_package(match: re.Match[str], files: Collection[str]) -> Text | None:
    name = (match["bare"] or match["relative"]).strip("/")
    if not any(file.startswith(f"{name}/") for file in files):
        return None
    module = "<module>" if "go.mod" in files else "function"
    return _GO_OWN_PACKAGE.format(name=name, module=module)


_GO: Final = (
    _Rule(
        re.compile(
            r"unexpected NUL in input|(?:illegal|invalid) UTF-8 encoding|(?:illegal|invalid) NUL character"
        ),
        _always(NOT_UTF8),
    ),
    _Rule(re.compile(r'^(?P<file>[^\n:]{1,300}\.go): import "C": cgo is off', re.MULTILINE), _always(_CGO)),
    _Rule(
        re.compile(
            r"^[^\n:]{1,300}\.go:\d{1,9}:\d{1,9}: "
            r"(?:package (?P<bare>[^\s\"]{1,300}) is not in std"
            r'|"\./(?P<relative>[^\s"]{1,300})" is relative)',
            re.MULTILINE,
        ),
        _own_package,
    ),
    _Rule(re.compile(r"module lookup disabled by GOPROXY=off|inconsistent vendoring"), _always(_GO_MODULE)),
    _Rule(
        re.compile(
            r"go\.mod requires go >= (?P<wanted>[\w.]{1,40}) \(running go (?P<present>[\w.]{1,40})",
        ),
        _always(_GO_VERSION),
    ),
    _Rule(
        re.compile(
            r"found packages [^\s]{1,300} \((?P<first>[^)\n]{1,300})\) "
            r"and [^\s]{1,300} \((?P<second>[^)\n]{1,300})\)"
        ),
        _always(_GO_PACKAGES),
    ),
    _Rule(
        re.compile(
            r"^(?:\./)?(?P<first>[^\n:]{1,300}):\d{1,9}:\d{1,9}: "
            r"(?P<name>\w{1,100}) redeclared in this block\n"
            r"\s{1,8}(?:\./)?(?P<second>[^\n:]{1,300}):\d{1,9}:\d{1,9}: other declaration",
            re.MULTILINE,
        ),
        _always(_GO_TWO_DEFINITIONS),
    ),
)

_RULES: Final[dict[Runtime, tuple[_Rule, ...]]] = {Runtime.CPP: _CPP, Runtime.GO: _GO}
