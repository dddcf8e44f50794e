"""Failed builds of C++ programs: the messages of g++ 14 and GNU ld.

tests/integration/test_builds.py compares the patterns with real builds.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain.build_rule import BuildRule, always
from nanoagent.languages.explain.texts import NOT_UTF8
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Collection

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


def _missing_header(match: re.Match[str], files: Collection[str]) -> Hint:
    name = match["name"]
    last = name.rpartition("/")[2]
    found = sorted(file for file in files if file == name or file.endswith(f"/{name}"))
    found = found or sorted(file for file in files if file.rpartition("/")[2] == last)
    if not found:
        return Hint(Cause.HEADER_MISSING, _HEADER_MISSING.format(name=name))
    folder = found[0].removesuffix(name).rstrip("/") or found[0].rpartition("/")[0] or "."
    text = _HEADER_ELSEWHERE.format(name=name, found=found[0], folder=folder)
    return Hint(Cause.HEADER_ELSEWHERE, text)


def _defined_twice(match: re.Match[str], files: Collection[str]) -> Hint:
    is_main = match["name"] == "main"
    cause, text = (Cause.TWO_MAINS, _TWO_MAINS) if is_main else (Cause.TWO_DEFINITIONS, _TWO_DEFINITIONS)
    first, second = sorted(_path_of(match[group], files) for group in ("first", "second"))
    return Hint(cause, text.format(first=first, second=second, name=match["name"]))


def _path_of(name: str, files: Collection[str]) -> str:
    """Return the path of a file that the linker names without its folder, if only one file has the name."""
    found = [file for file in files if file == name or file.endswith(f"/{name}")]
    return found[0] if len(found) == 1 else name


def _undefined(match: re.Match[str], files: Collection[str]) -> Hint:
    name = match["name"]
    in_c = sorted(file for file in files if file.endswith(".c"))
    if in_c and name.endswith(")"):
        text = _C_NAME.format(name=name, files=", ".join(in_c[:_MAX_NAMED]))
        return Hint(Cause.C_LINKAGE, text)
    return Hint(Cause.UNDEFINED_REFERENCE, _UNDEFINED.format(name=name))


RULES: Final = (
    BuildRule(
        re.compile(r": error: stray '\\[2-3][0-7]{2}' in program"), always(Cause.SOURCE_ENCODING, NOT_UTF8)
    ),
    BuildRule(
        re.compile(r"fatal error: (?P<name>[^\n]{1,300}): No such file or directory"),
        _missing_header,
    ),
    BuildRule(
        re.compile(
            r"(?:available from|available with|only available with) [^\n]{0,40}\+\+(?P<version>\d\d)\b",
        ),
        always(Cause.CPP_STANDARD, _STANDARD),
    ),
    BuildRule(
        re.compile(
            r"^(?:[^\s:]{1,200}ld: )?(?P<second>[^\n:]{1,300}):\([^)\n]{1,100}\): "
            r"multiple definition of [`'](?P<name>[^'\n]{1,300})'; "
            r"(?:[^\n:]{1,300}:)?(?P<first>[^\n:]{1,300}):\([^)\n]{1,100}\): first defined here",
            re.MULTILINE,
        ),
        _defined_twice,
    ),
    BuildRule(re.compile(r"undefined reference to [`']main'"), always(Cause.NO_MAIN, _NO_MAIN)),
    BuildRule(re.compile(r"undefined reference to [`'](?P<name>[^'\n]{1,300})'"), _undefined),
)
