"""The environment variables that a job may bring (`env`), and those that the worker sets."""

from __future__ import annotations

import re
from typing import Final

from nanoagent.model.text import Text

MAX_VARIABLES: Final = 64
MAX_BYTES: Final = 32 * 1024
"""The names and values of all variables together, in UTF-8."""

RESERVED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG"),
        *("JOB_ID", "FUNCTION_ID", "OUTPUT_DIR", "PAYLOAD", "PAYLOAD_FILE", "MEMORY_LIMIT_MB", "DEADLINE_MS"),
        *("LLM_MODEL", "AI_ENDPOINT", "OLLAMA_HOST", "OLLAMA_BASE_URL", "OLLAMA_API_BASE"),
        *("OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_KEY", "GOMEMLIMIT"),
    }
)
"""The variables that the worker sets. A job cannot replace them."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")

_NOT_STRINGS: Final = Text(
    "env is not an object whose values are strings", "env가 문자열 값을 가진 객체가 아닙니다"
)
_TOO_MANY: Final = Text(
    "env has {count} variables; at most {most} are allowed",
    "env에 변수가 {count}개 있습니다. 최대 {most}개까지 허용됩니다",
)
_TOO_LARGE: Final = Text(
    "env has {size} bytes; at most {most} are allowed",
    "env의 크기가 {size}바이트입니다. 최대 {most}바이트까지 허용됩니다",
)
_WRONG_NAME: Final = Text(
    "env has the name {name}; expected letters, digits and _, at most 128, no digit first",
    "env에 이름 {name}이(가) 있습니다. 필요한 값: 영문자, 숫자, _로 된 128자 이하의 이름 (숫자로 시작 불가)",
)
_RESERVED_NAME: Final = Text(
    "env sets {name}, which the worker sets; choose another name",
    "env가 워커가 설정하는 {name}을(를) 설정합니다. 다른 이름을 사용하세요",
)
_WRONG_VALUE: Final = Text(
    "env: the value of {name} has a NUL character or invalid Unicode",
    "env: {name}의 값에 NUL 문자 또는 잘못된 유니코드가 있습니다",
)


def problems(env: object) -> list[Text]:
    """Return the problems of the field `env`. The texts show no values, because these may be secret.

    Args:
        env: The parsed JSON of the field.
    """
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        return [_NOT_STRINGS]
    if len(env) > MAX_VARIABLES:
        return [_TOO_MANY.format(count=len(env), most=MAX_VARIABLES)]
    found = [problem for name, value in env.items() if (problem := _problem(name, value)) is not None]
    size = sum(len(text.encode(errors="replace")) for pair in env.items() for text in pair)
    if size > MAX_BYTES:
        found.append(_TOO_LARGE.format(size=size, most=MAX_BYTES))
    return found


def _problem(name: str, value: str) -> Text | None:
    if not _NAME.fullmatch(name):
        return _WRONG_NAME.format(name=ascii(name[:128]))
    if name in RESERVED:
        return _RESERVED_NAME.format(name=name)
    try:
        is_wrong = b"\0" in value.encode()
    except UnicodeEncodeError:
        is_wrong = True
    return _WRONG_VALUE.format(name=name) if is_wrong else None
