"""The rules for code zips: for each rule, the message of a refusal and the advice for the author.

A message about the whole zip names the zip; a message about one entry names the entry. `refused` makes the
exception that carries message and advice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nanoagent.model.errors import Rejected, one_line
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text

_SHOWN_CHARACTERS: Final = 120


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule for code zips.

    Attributes:
        message: The refusal of a zip that breaks the rule; a template.
        hint: The advice for the author.
    """

    message: Text
    hint: Text


def refused(rule: Rule, **fields: object) -> Rejected:
    """Return the refusal of a zip that breaks a rule.

    Args:
        rule: The rule.
        fields: The fields of its message. Names from the zip (`name`, `other`, `target`) and the text of a
            library (`detail`) are escaped and cut.
    """
    shown = {
        name: shown_name(str(value)) if name in {"name", "other", "target"} else value
        for name, value in fields.items()
    }
    if "detail" in shown:
        shown["detail"] = _cut(one_line(str(shown["detail"])))
    return Rejected(ErrorType.INVALID_CODE, rule.message.format(**shown), hint=rule.hint)


def shown_name(name: str) -> str:
    """Escape a name from a zip, and cut it. Escapes can make it ten times as long, so it is cut last."""
    return _cut(repr(name))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _zip(en: str, ko: str, hint: Text) -> Rule:
    return Rule(Text(f"the code zip {en}", f"코드 zip{ko}"), hint)


def _entry(en: str, ko: str, hint: Text) -> Rule:
    return Rule(Text(f"the code zip's entry {{name}} {en}", f"코드 zip의 항목 {{name}}{ko}"), hint)


_DAMAGED: Final = Text(
    "The zip is damaged: make it again, and upload it unchanged (in binary mode).",
    "zip 파일이 손상되었습니다. 다시 만들어서 바이너리 그대로 올리세요.",
)
_SMALLER: Final = Text(
    "Leave out what the function does not need (tests, caches, unused libraries), or ask for a higher "
    "{setting}.",
    "필요 없는 파일(테스트, 캐시, 쓰지 않는 라이브러리)을 빼거나 {setting} 값을 올려 달라고 요청하세요.",
)
_RENAME: Final = Text(
    "Rename the file or folder, and make the zip again.",
    "파일이나 폴더의 이름을 바꾸고 zip을 다시 만드세요.",
)
_RELATIVE_NAMES: Final = Text(
    "Make the zip inside the code's folder: every name must be relative (`cd code && zip -r ../code.zip .`).",
    "코드 폴더 안에서 zip을 만들어 모든 이름이 상대 경로가 되게 하세요(`cd code && zip -r ../code.zip .`).",
)
_KEEP_LINKS_INSIDE: Final = Text(
    "Make the link relative, to a file or folder of the zip, or zip the files themselves (no -y).",
    "링크를 zip 안의 파일이나 폴더를 가리키는 상대 링크로 바꾸거나, -y 없이 `zip -r`로 파일 자체를 넣으세요.",
)

# --- the whole zip

ZIP_TOO_LARGE: Final = _zip(
    "is larger than the limit of {limit_mb:g} MiB (CODE_MAX_ZIP_MB)",
    "이 한도 {limit_mb:g} MiB(CODE_MAX_ZIP_MB)보다 큽니다",
    _SMALLER.format(setting="CODE_MAX_ZIP_MB"),
)
NOT_A_ZIP: Final = _zip(
    "is not a zip that can be read: {detail}",
    "을 읽을 수 없습니다: {detail}",
    Text(
        "Upload a zip file, complete and unchanged. Other archives (tar, gz, 7z, rar) are not supported.",
        "온전한 zip 파일을 그대로 올리세요. tar, gz, 7z, rar 파일은 zip이 아닙니다.",
    ),
)
EMPTY: Final = _zip(
    "has no entries",
    "에 항목이 없습니다",
    Text(
        "The zip is empty: check which folder it was made from.",
        "zip이 비어 있습니다. 어느 폴더에서 만들었는지 확인하세요.",
    ),
)
TOO_MANY_ENTRIES: Final = _zip(
    "has more than {limit} files and folders (CODE_MAX_ENTRIES)",
    "에 파일과 폴더가 {limit}개(CODE_MAX_ENTRIES)보다 많습니다",
    _SMALLER.format(setting="CODE_MAX_ENTRIES"),
)
UNPACKED_TOO_LARGE: Final = _zip(
    "unpacks to more than {limit_mb:g} MiB (CODE_MAX_UNPACKED_MB)",
    "의 압축을 풀면 {limit_mb:g} MiB(CODE_MAX_UNPACKED_MB)보다 큽니다",
    _SMALLER.format(setting="CODE_MAX_UNPACKED_MB"),
)
DIRECTORY_TOO_LARGE: Final = _zip(
    "has a directory of more than {limit} bytes",
    "의 목록이 {limit}바이트보다 큽니다",
    Text(
        "Use shorter names, and leave comments and extra fields out of the zip.",
        "zip에 짧은 이름을 쓰고, 주석과 추가 필드를 넣지 마세요.",
    ),
)

# --- names

EMPTY_NAME: Final = _entry("has an empty name", "의 이름이 비어 있습니다", _RENAME)
CONTROL_CHARACTER: Final = _entry(
    "has a NUL or control character in its name", "의 이름에 NUL 또는 제어 문자가 있습니다", _RENAME
)
BACKSLASH: Final = _entry(
    "has a backslash in its name, while other names are separated by /",
    "의 이름에 백슬래시가 있는데, 다른 이름은 /로 구분되어 있습니다",
    Text(
        "Separate folders by / in every name of the zip.",
        "zip의 모든 이름에서 폴더를 /로 구분하세요.",
    ),
)
ABSOLUTE: Final = _entry("is an absolute path", "은(는) 절대 경로입니다", _RELATIVE_NAMES)
PARENT: Final = _entry("has the part '..' in its path", "의 경로에 '..'이 있습니다", _RELATIVE_NAMES)
NAME_TOO_LONG: Final = _entry(
    "has a name of more than {limit} bytes", "의 이름이 {limit}바이트보다 깁니다", _RENAME
)
PART_TOO_LONG: Final = _entry(
    "has a part of more than {limit} bytes in its path",
    "의 경로에 {limit}바이트보다 긴 부분이 있습니다",
    _RENAME,
)
TOO_DEEP: Final = _entry(
    "is more than {limit} folders deep",
    "은(는) 폴더 {limit}단계보다 깊습니다",
    Text("Nest the folders less deeply.", "폴더의 깊이를 줄이세요."),
)
UNICODE_NAME: Final = _entry(
    "has a Unicode name (field 0x7075) that is not UTF-8",
    "의 유니코드 이름(0x7075 필드)이 UTF-8이 아닙니다",
    _DAMAGED,
)
EXTRA_TOO_LONG: Final = _entry(
    "has more than {limit} bytes of extra fields",
    "의 추가 필드가 {limit}바이트보다 깁니다",
    Text(
        "Make the zip without extra fields (`zip -X`).",
        "추가 필드 없이 zip을 만드세요(`zip -X`).",
    ),
)

# --- kinds

ENCRYPTED: Final = _entry(
    "is encrypted",
    "은(는) 암호화되어 있습니다",
    Text("Make the zip without a password.", "비밀번호 없이 zip을 만드세요."),
)
METHOD: Final = _entry(
    "uses compression method {method}; only stored and deflate are supported",
    "은(는) 압축 방식 {method}을(를) 씁니다. 저장(store)과 deflate만 지원합니다",
    Text(
        "Make the zip with the method Deflate, which is the default of most tools (7-Zip: -mm=Deflate).",
        "대부분의 도구가 기본으로 쓰는 Deflate 방식으로 zip을 만드세요(7-Zip: -mm=Deflate).",
    ),
)
SPECIAL: Final = _entry(
    "is a device, pipe or socket",
    "은(는) 장치, 파이프 또는 소켓입니다",
    Text(
        "Put only files, folders and links into the zip.",
        "zip에는 파일, 폴더, 링크만 넣으세요.",
    ),
)
FOLDER_NAME: Final = _entry(
    "is marked as a folder, but its name does not end with /",
    "은(는) 폴더로 표시되어 있지만 이름이 /로 끝나지 않습니다",
    _DAMAGED,
)
FOLDER_CONTENT: Final = _entry("is a folder with content", "은(는) 내용이 있는 폴더입니다", _DAMAGED)
FILE_TOO_LARGE: Final = _entry(
    "has {size} bytes, more than the limit of {limit_mb:g} MiB (CODE_MAX_FILE_MB)",
    "의 크기 {size}바이트가 한도 {limit_mb:g} MiB(CODE_MAX_FILE_MB)보다 큽니다",
    Text(
        "Fetch large data when the function runs, or ask for a higher CODE_MAX_FILE_MB.",
        "큰 데이터는 함수가 실행될 때 받아 오거나 CODE_MAX_FILE_MB 값을 올려 달라고 요청하세요.",
    ),
)

# --- two entries with one path

FILE_AND_FOLDER: Final = _entry(
    "makes {other} both a file and a folder",
    " 때문에 {other}이(가) 파일이면서 폴더가 됩니다",
    Text(
        "Two inputs were merged into one zip: remove the file or the folder of that name.",
        "두 입력이 한 zip에 합쳐졌습니다. 그 이름의 파일이나 폴더 중 하나를 지우세요.",
    ),
)
TWICE: Final = _entry(
    "exists twice, with different content",
    "이(가) 서로 다른 내용으로 두 번 있습니다",
    Text(
        "Delete the old zip before you make the new one: a file was added to it twice.",
        "새로 만들기 전에 이전 zip을 지우세요. 같은 파일이 두 번 추가되었습니다.",
    ),
)

# --- links

LINK_TEXT: Final = _entry(
    "is a symbolic link with an invalid target", "은(는) 대상이 잘못된 심볼릭 링크입니다", _KEEP_LINKS_INSIDE
)
LINK_ABSOLUTE: Final = _entry(
    "is a symbolic link to the absolute path {target}",
    "은(는) 절대 경로 {target}을(를) 가리키는 심볼릭 링크입니다",
    _KEEP_LINKS_INSIDE,
)
LINK_OUTSIDE: Final = _entry(
    "is a symbolic link that leads out of the code: {target}",
    "은(는) 코드 밖을 가리키는 심볼릭 링크입니다: {target}",
    _KEEP_LINKS_INSIDE,
)
LINK_DANGLING: Final = _entry(
    "is a symbolic link to {target}, which is not in the zip",
    "은(는) zip에 없는 {target}을(를) 가리키는 심볼릭 링크입니다",
    _KEEP_LINKS_INSIDE,
)
LINK_LOOP: Final = _entry(
    "is a symbolic link that leads back to itself, or through more than {limit} links: {target}",
    "은(는) 자신에게 돌아오거나 링크 {limit}개를 넘게 거치는 심볼릭 링크입니다: {target}",
    _KEEP_LINKS_INSIDE,
)

# --- data

SIZES_DIFFER: Final = _entry(
    "is stored, but its two sizes differ", "은(는) 압축되지 않았는데 두 크기가 다릅니다", _DAMAGED
)
BEFORE_FILE: Final = _entry("starts before the file", "이(가) 파일 앞에서 시작합니다", _DAMAGED)
OVERLAPS: Final = _entry("overlaps with {other}", "이(가) {other}와(과) 겹칩니다", _DAMAGED)
INTO_DIRECTORY: Final = _entry(
    "is truncated: its data reaches into the directory",
    "이(가) 잘려 있습니다: 데이터가 목록과 겹칩니다",
    _DAMAGED,
)
NO_HEADER: Final = _entry("is truncated: it has no header", "이(가) 잘려 있습니다: 헤더가 없습니다", _DAMAGED)
HEADER_DIFFERS: Final = _entry(
    "has a header that differs from the directory", "의 헤더가 목록과 다릅니다", _DAMAGED
)
WRONG_SIZE: Final = _entry("has another size than the directory says", "의 크기가 목록과 다릅니다", _DAMAGED)
WRONG_CHECKSUM: Final = _entry(
    "does not match its checksum (CRC-32)", "이(가) 체크섬(CRC-32)과 맞지 않습니다", _DAMAGED
)
DAMAGED_DATA: Final = _entry("has damaged data: {detail}", "의 데이터가 손상되었습니다: {detail}", _DAMAGED)

RULES: Final[dict[str, Rule]] = {name: rule for name, rule in globals().items() if isinstance(rule, Rule)}
"""All rules, by their names in this module."""
