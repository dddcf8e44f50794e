"""Messages and hints for jobs whose secrets cannot be used. They have no values.

The error texts of AWS name roles and accounts of the operator. So only the log has them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from nanoagent.model.errors import Rejected, one_line
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text
from nanoagent.model.variables import MAX_BYTES
from nanoagent.secrets.base import Absence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.model.secret import SecretReference
    from nanoagent.secrets.base import SecretMissing

_MAX_SHOWN_ID: Final = 80
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9_.:@/-]{1,80}")


class Problem(NamedTuple):
    """Why one variable has no value.

    Attributes:
        message: The fault, with the variable and the reference.
        hint: The remedy.
    """

    message: Text
    hint: Text


_TURNED_OFF: Final = Text(
    "env: {name} refers to the secret {secret}, but this worker resolves no secrets (SECRETS_ALLOW is empty)",
    "env: {name}이(가) 시크릿 {secret}을(를) 참조하지만, 이 워커는 시크릿을 읽지 않습니다"
    " (SECRETS_ALLOW가 비어 있음)",
)
_NOT_ALLOWED: Final = Text(
    "env: {name} refers to the secret {secret}, which SECRETS_ALLOW does not allow for the function"
    " {function}",
    "env: {name}이(가) 시크릿 {secret}을(를) 참조하지만, SECRETS_ALLOW가 함수 {function}에 허용하지 않습니다",
)
_ALLOW: Final = Text(
    "Ask the operator of the worker to add a rule to SECRETS_ALLOW, such as {function}={service}:{name}",
    "워커 운영자에게 SECRETS_ALLOW에 규칙을 추가해 달라고 요청하세요. 예: {function}={service}:{name}",
)
_MISSING: Final = {
    Absence.NAME: Problem(
        Text(
            "env: {name}: the secret {secret} does not exist",
            "env: {name}: 시크릿 {secret}이(가) 존재하지 않습니다",
        ),
        Text(
            "Create it in the account and region of the worker, or correct the reference; names are "
            "case-sensitive.",
            "워커의 계정과 리전에 만들거나 참조를 고치세요. 이름은 대소문자를 구분합니다.",
        ),
    ),
    Absence.DENIED: Problem(
        Text(
            "env: {name}: the worker may not read the secret {secret}: it lacks {action}",
            "env: {name}: 워커가 시크릿 {secret}을(를) 읽을 수 없습니다. {action} 권한이 없습니다",
        ),
        Text(
            "Ask the operator to allow {action} on it for the worker's role "
            "(deploy/iam-policy-secrets.json).",
            "운영자에게 워커의 역할에 이 시크릿에 대한 {action} 권한을 달라고 요청하세요"
            " (deploy/iam-policy-secrets.json).",
        ),
    ),
    Absence.KEY_UNUSABLE: Problem(
        Text(
            "env: {name}: the worker cannot decrypt the secret {secret} with its KMS key",
            "env: {name}: 워커가 시크릿 {secret}을(를) KMS 키로 복호화할 수 없습니다",
        ),
        Text(
            "Ask the operator to allow kms:Decrypt on the key for the worker's role, and to check that the"
            " key is enabled.",
            "운영자에게 워커의 역할에 그 키에 대한 kms:Decrypt 권한을 주고, 키가 활성화되어 있는지 확인해"
            " 달라고 요청하세요.",
        ),
    ),
    Absence.DELETED: Problem(
        Text(
            "env: {name}: the secret {secret} cannot be read: it is scheduled for deletion",
            "env: {name}: 시크릿 {secret}은(는) 삭제가 예약되어 읽을 수 없습니다",
        ),
        Text(
            "Restore it (aws secretsmanager restore-secret), or refer to another secret.",
            "복원하거나(aws secretsmanager restore-secret) 다른 시크릿을 참조하세요.",
        ),
    ),
    Absence.BINARY: Problem(
        Text(
            "env: {name}: the value of the secret {secret} is not a text",
            "env: {name}: 시크릿 {secret}의 값이 텍스트가 아닙니다",
        ),
        Text(
            "Store a text without NUL characters (SecretString); encode binary data, for example as Base64.",
            "NUL 문자가 없는 텍스트(SecretString)로 저장하세요. 이진 데이터는 Base64 등으로 인코딩하세요.",
        ),
    ),
    Absence.MEMBER: Problem(
        Text(
            "env: {name}: the secret {secret} is not a JSON object in which the key has a text, a number or a"
            " truth value",
            "env: {name}: 시크릿 {secret}이(가) 해당 키에 텍스트, 숫자 또는 참·거짓 값을 가진 JSON 객체가"
            " 아닙니다",
        ),
        Text(
            "Correct the key, or leave it out to get the whole secret.",
            "키를 고치거나, 빼서 시크릿 전체를 받으세요.",
        ),
    ),
}
_TOO_LARGE: Final = Problem(
    Text(
        "env has {size} bytes with the values of its secrets ({names}); at most {most} are allowed",
        "env의 크기가 시크릿({names})의 값을 포함해 {size}바이트입니다. 최대 {most}바이트까지 허용됩니다",
    ),
    Text(
        "Refer to smaller secrets, or to one key of a secret.",
        "더 작은 시크릿이나 시크릿의 키 하나를 참조하세요.",
    ),
)


def not_allowed(name: str, reference: SecretReference, function_id: str, *, turned_off: bool) -> Problem:
    """Return the problem of a reference that the rules do not allow.

    Args:
        name: The variable.
        reference: The reference.
        function_id: The job's `functionId`.
        turned_off: Whether there are no rules.
    """
    function = one_line(function_id[:_MAX_SHOWN_ID])
    pattern = function if _PLAIN_ID.fullmatch(function_id) else "FUNCTION"
    message = _TURNED_OFF if turned_off else _NOT_ALLOWED
    return Problem(
        message.format(name=name, secret=reference, function=function),
        _ALLOW.format(function=pattern, service=reference.service, name=reference.name),
    )


def missing(name: str, reference: SecretReference, reason: SecretMissing) -> Problem:
    """Return the problem of a secret that cannot be used.

    Args:
        name: The variable.
        reference: The reference.
        reason: The answer of the store.
    """
    message, hint = _MISSING[reason.absence]
    return Problem(
        message.format(name=name, secret=reference, action=reason.action), hint.format(action=reason.action)
    )


def too_large(names: Sequence[str], size_bytes: int) -> Problem:
    """Return the problem of values that are too large together.

    Args:
        names: The variables with secrets.
        size_bytes: The size of all variables.
    """
    message = _TOO_LARGE.message.format(size=size_bytes, names=", ".join(names), most=MAX_BYTES)
    return Problem(message, _TOO_LARGE.hint)


def rejection(problems: Sequence[Problem]) -> Rejected:
    """Return the rejection of a job, with every problem, and the remedy of the first one."""
    message = Text(
        "; ".join(problem.message.en for problem in problems),
        "; ".join(problem.message.ko for problem in problems),
    )
    return Rejected(ErrorType.INVALID_JOB, message, hint=problems[0].hint, certain=False)
