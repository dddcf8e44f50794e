"""The environment variables that a job may bring (`env`), and those that the worker sets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.model import secret
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from nanoagent.model.secret import SecretReference

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

_NOT_AN_OBJECT: Final = Text(
    "env is not an object whose values are strings or references to secrets",
    "env가 문자열 또는 시크릿 참조를 값으로 가진 객체가 아닙니다",
)
_NO_REFERENCE: Final = Text(
    'env: the value of {name} is neither a string nor a reference such as {{"ssm": "/prod/db"}} or'
    ' {{"secretsManager": "prod/db", "key": "password"}} (docs/contract.md)',
    'env: {name}의 값이 문자열도, {{"ssm": "/prod/db"}}나'
    ' {{"secretsManager": "prod/db", "key": "password"}} 같은 참조도 아닙니다 (docs/contract.md)',
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


@dataclass(frozen=True, slots=True)
class Variables:
    """The variables of the field `env`.

    Attributes:
        values: The names and values of variables. The values may be secret.
        secrets: The names of other variables, and the secrets that are their values.
        problems: The problems of the field. The texts show no values. With problems, there are no variables.
    """

    values: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: tuple[tuple[str, SecretReference], ...] = ()
    problems: tuple[Text, ...] = ()


def parse(env: object) -> Variables:
    """Parse the field `env`.

    Args:
        env: The parsed JSON of the field.
    """
    if not isinstance(env, dict):
        return Variables(problems=(_NOT_AN_OBJECT,))
    if len(env) > MAX_VARIABLES:
        return Variables(problems=(_TOO_MANY.format(count=len(env), most=MAX_VARIABLES),))
    values = {name: value for name, value in env.items() if isinstance(value, str)}
    secrets = {name: secret.parse(value) for name, value in env.items() if name not in values}
    problems = [
        problem for name, value in env.items() if (problem := _problem(name, value, secrets)) is not None
    ]
    if (size := size_bytes(values)) > MAX_BYTES:
        problems.append(_TOO_LARGE.format(size=size, most=MAX_BYTES))
    if problems:
        return Variables(problems=tuple(problems))
    references = tuple((name, found) for name, found in secrets.items() if found is not None)
    return Variables(tuple(values.items()), references)


def size_bytes(variables: dict[str, str]) -> int:
    """Return the size of variables, names and values together, bytes of UTF-8."""
    return sum(len(text.encode(errors="replace")) for pair in variables.items() for text in pair)


def _problem(name: str, value: object, secrets: dict[str, SecretReference | None]) -> Text | None:
    if not _NAME.fullmatch(name):
        return _WRONG_NAME.format(name=ascii(name[:128]))
    if name in RESERVED:
        return _RESERVED_NAME.format(name=name)
    if isinstance(value, str):
        return None if is_text(value) else _WRONG_VALUE.format(name=name)
    return _NO_REFERENCE.format(name=name) if secrets[name] is None else None


def is_text(value: str) -> bool:
    """Whether a variable can have the value: it has no NUL character, and can be encoded."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False
