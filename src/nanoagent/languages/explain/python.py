"""Errors of Python programs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain import common, modules
from nanoagent.languages.explain.rule import in_error, in_message
from nanoagent.languages.explain.texts import (
    ALLOCATION,
    ARGUMENTS,
    BYTE_ORDER_MARK,
    NOT_UTF8,
    RECURSION,
    STDIN_CONSUMED,
    VARIABLE,
)
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from nanoagent.languages.explain.facts import Facts
    from nanoagent.languages.explain.rule import Rule

_DECODE: Final = Text(
    "The program reads text as {codec}, but the bytes have another encoding. Give the right one, for example"
    " open(path, encoding='cp949') for a Korean file of Windows or Excel, or open the file in binary mode.",
    "프로그램이 텍스트를 {codec}로 읽지만 바이트의 인코딩이 다릅니다. 맞는 인코딩을 지정하세요. 예를 들어"
    " 한국어 Windows나 Excel 파일이면 open(path, encoding='cp949')를 쓰고, 텍스트가 아니면 바이너리로"
    " 여세요.",
)
_ENCODE: Final = Text(
    "The program writes a character that {codec} does not have. Use UTF-8: open(path, 'w',"
    " encoding='utf-8'), or"
    " leave the encoding of sys.stdout as it is (UTF-8).",
    "프로그램이 {codec}에 없는 문자를 씁니다. UTF-8을 쓰세요: open(path, 'w', encoding='utf-8')."
    " sys.stdout의 인코딩은 UTF-8 그대로 두세요.",
)
_SURROGATES: Final = Text(
    "The text has half a character (a surrogate), which UTF-8 cannot write. It often comes from a file name"
    " or"
    " from JSON that was cut. Use errors='replace' to write it.",
    "텍스트에 UTF-8로 쓸 수 없는 반쪽 문자(surrogate)가 있습니다. 파일 이름이나 잘린 JSON에서 자주 생깁니다."
    " errors='replace'로 쓰세요.",
)
_STDIN: Final = re.compile(
    r"sys\.stdin\.(?:buffer\.)?read(?:lines)?\(|json\.load\(sys\.stdin(?:\.buffer)?\)"
    r"|open\((?:0|'/dev/stdin')|for \w{1,50} in sys\.stdin\b|\binput\("
)


def _reads_stdin_twice(_: re.Match[str], facts: Facts) -> Hint | None:
    """The JSON was empty: only if the source reads standard input at least twice."""
    reads = len(_STDIN.findall(facts.tree.source))
    in_frame = "json.load(sys.stdin" in facts.block or "sys.stdin.read" in facts.block
    return Hint(Cause.STDIN_CONSUMED, STDIN_CONSUMED) if reads > 1 and in_frame else None


def _end_of_file(_: re.Match[str], __: Facts) -> Hint:
    return Hint(Cause.STDIN_CONSUMED, STDIN_CONSUMED)


def _arguments(_: re.Match[str], facts: Facts) -> Hint | None:
    return Hint(Cause.NO_ARGUMENTS, ARGUMENTS) if re.search(r"sys\.argv\[\d", facts.block) else None


def _variable(found: re.Match[str], facts: Facts) -> Hint | None:
    if 'File "<frozen os>"' not in facts.block or found["name"] == "PAYLOAD":
        return None
    return Hint(Cause.VARIABLE_MISSING, VARIABLE.format(name=found["name"]))


def _encode(found: re.Match[str], _: Facts) -> Hint:
    if found["rest"]:
        return Hint(Cause.TEXT_ENCODING, _SURROGATES)
    return Hint(Cause.TEXT_ENCODING, _ENCODE.format(codec=found["codec"]))


RULES: Final[tuple[Rule, ...]] = (
    *modules.RULES,
    in_message(r"RecursionError: maximum recursion depth exceeded", (Cause.RECURSION, RECURSION)),
    in_message(
        r"SyntaxError: Non-UTF-8 code starting with|SyntaxError: \(unicode error\) 'utf-8' codec"
        r"|SyntaxError: source code (?:string )?cannot contain null bytes",
        (Cause.SOURCE_ENCODING, NOT_UTF8),
    ),
    in_message(r"Unexpected UTF-8 BOM", (Cause.BYTE_ORDER_MARK, BYTE_ORDER_MARK)),
    in_message(
        r"UnicodeDecodeError: '(?P<codec>[\w-]{1,40})' codec can't decode", (Cause.TEXT_ENCODING, _DECODE)
    ),
    in_message(
        r"UnicodeEncodeError: '(?P<codec>[\w-]{1,40})' codec can't encode"
        r"(?P<rest>[^\n]{1,200}surrogates not allowed)?",
        _encode,
    ),
    in_message(r"locale\.Error: unsupported locale setting", (Cause.LOCALE_MISSING, common.LOCALE)),
    in_message(r"EOFError: EOF when reading a line", _end_of_file),
    in_message(r"Expecting value: line 1 column 1 \(char 0\)", _reads_stdin_twice),
    in_message(r"IndexError: list index out of range", _arguments),
    in_error(r"error: the following arguments are required: ", (Cause.NO_ARGUMENTS, ARGUMENTS)),
    in_message(r"KeyError: '(?P<name>[A-Za-z_]\w{0,100})'", _variable),
    in_message(
        r"MemoryError(?:: Unable to allocate |$)",
        lambda _, facts: Hint(Cause.ALLOCATION_TOO_LARGE, ALLOCATION.format(memory_mb=facts.memory_mb)),
    ),
)
