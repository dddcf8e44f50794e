"""Errors of connections."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nanoagent.languages.explain.rule import in_error
from nanoagent.model.cause import Cause, Hint
from nanoagent.model.job import NetworkPolicy
from nanoagent.model.text import Text
from nanoagent.network.policy import host_name

if TYPE_CHECKING:
    from nanoagent.languages.explain.facts import Facts
    from nanoagent.languages.explain.rule import Rule

_NO_INTERNET: Final = Text(
    "The run cannot reach the internet: its network is {network}. To allow it, the worker needs"
    " NETWORK=egress, and the job's field network must be egress or left out. Models are reached at the"
    " address in the environment variable AI_ENDPOINT.",
    "실행의 network가 {network}이어서 인터넷에 접속할 수 없습니다. 허용하려면 워커에 NETWORK=egress를"
    " 설정하고 작업의 network 필드를 egress로 하거나 생략하세요."
    " 모델은 환경 변수 AI_ENDPOINT의 주소로 접속합니다.",
)
_NOT_ALLOWED: Final = Text(
    "The worker does not allow the host {host}. Ask the operator to add it to EGRESS_ALLOW.",
    "워커가 {host} 호스트를 허용하지 않습니다. EGRESS_ALLOW에 추가해 달라고 요청하세요.",
)
_UNKNOWN: Final = Text(
    "The name of the host {host} could not be resolved. The worker allows the name, so check its spelling.",
    "{host} 호스트의 이름을 찾지 못했습니다. 워커는 이 이름을 허용하므로 철자를 확인하세요.",
)
_NO_SUCH_HOST: Final = Text(
    "The host's name could not be resolved. Check the name. The worker must also allow the host "
    "(EGRESS_ALLOW).",
    "호스트 이름을 찾지 못했습니다. 이름을 확인하세요. 워커의 EGRESS_ALLOW에서도 허용해야 합니다.",
)
_LOCAL: Final = Text(
    "Nothing listens at the address that the program connects to. Inside a run, localhost is the run"
    " itself: a"
    " database or server of your computer is not there. Pass its address in the job's field env, and allow it"
    " with network: egress. The address of models is in the environment variable AI_ENDPOINT.",
    "프로그램이 접속하는 주소에서 아무것도 듣고 있지 않습니다. 실행 안에서 localhost는 실행 자신이며, 여러분"
    " 컴퓨터의 데이터베이스나 서버는 없습니다. 주소를 작업의 env 필드로 넘기고 network: egress로 허용하세요."
    " 모델의 주소는 환경 변수 AI_ENDPOINT에 있습니다.",
)
_CREDENTIALS: Final = Text(
    "The run has no AWS credentials, and the instance's are not reachable. Files in /output are uploaded by"
    " the"
    " worker. For other calls pass temporary credentials in the job's field env.",
    "실행에는 AWS 자격 증명이 없고 인스턴스의 자격 증명에도 접근할 수 없습니다. /output의 파일은 워커가"
    " 업로드합니다. 다른 호출에는 임시 자격 증명을 작업의 env 필드로 넘기세요.",
)
_HOST: Final = re.compile(
    r"getaddrinfo (?:ENOTFOUND|EAI_AGAIN) (?P<node>[\w.-]{1,253})"
    r"|lookup (?P<go>[\w.-]{1,253})"
    r"|\(host='(?P<python>[\w.-]{1,253})'"
    r"|Failed to resolve '(?P<urllib3>[\w.-]{1,253})'"
)
_LOCALHOST: Final = re.compile(r"localhost|127\.0\.0\.1|::1")


def _name_resolution(_: re.Match[str], facts: Facts) -> Hint:
    if not facts.network.allows(NetworkPolicy.EGRESS):
        return Hint(Cause.NO_NETWORK, _NO_INTERNET.format(network=facts.network))
    found = _HOST.search(facts.line) or _HOST.search(facts.block)
    host = next((name for name in found.groups() if name), "") if found else ""
    if not host or facts.hosts is None:
        return Hint(Cause.HOST_UNKNOWN, _NO_SUCH_HOST)
    if facts.hosts.allows(host_name(host) or host):
        return Hint(Cause.HOST_UNKNOWN, _UNKNOWN.format(host=host))
    return Hint(Cause.EGRESS_REFUSED, _NOT_ALLOWED.format(host=host))


def _unreachable(_: re.Match[str], facts: Facts) -> Hint | None:
    if facts.network.allows(NetworkPolicy.EGRESS):
        return None  # a single address: the host may be down
    return Hint(Cause.NO_NETWORK, _NO_INTERNET.format(network=facts.network))


def _refused(_: re.Match[str], facts: Facts) -> Hint | None:
    # Without egress, a run reaches only its own addresses: other connections fail as unreachable.
    local = _LOCALHOST.search(facts.line) or _LOCALHOST.search(facts.block)
    if facts.network.allows(NetworkPolicy.EGRESS) and not local:
        return None
    return Hint(Cause.LOCAL_SERVICE, _LOCAL)


RULES: Final[tuple[Rule, ...]] = (
    in_error(
        r"Temporary failure in name resolution|Name or service not known|Failed to resolve '"
        r"|getaddrinfo E(?:AI_AGAIN|NOTFOUND)"  # Node.js
        r"|dial tcp: lookup "  # Go
        r"|No address associated with hostname",
        _name_resolution,
        marks=(
            *(
                "name resolution",
                "Name or service",
                "Failed to resolve",
                "getaddrinfo E",
                "dial tcp: lookup ",
            ),
            "No address associated",
        ),
    ),
    in_error(
        r"Network is unreachable|connect ENETUNREACH|connect: network is unreachable",
        _unreachable,
        marks=("etwork is unreachable", "ENETUNREACH"),
    ),
    in_error(
        r"\[Errno 111\] Connection refused|connect ECONNREFUSED|connect: connection refused"
        r"|dial tcp \[::1\]:\d{1,5}: connect: cannot assign requested address",
        _refused,
        marks=("onnection refused", "ECONNREFUSED", "cannot assign requested address"),
    ),
    in_error(
        r"NoCredentialsError: Unable to locate credentials|Could not load credentials from any providers"
        r"|no EC2 IMDS role found",
        (Cause.NO_CREDENTIALS, _CREDENTIALS),
        marks=("redentials", "IMDS role"),
    ),
)
