"""Findings about Redis: whether it serves, allows the worker's commands, and keeps results.

Sources: redis.io, "ACL", "Key eviction" and "INFO"; the names of exceptions are those of redis-py.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from nanoagent.doctor.facts import REDIS_COMMANDS
from nanoagent.doctor.finding import Area, Finding, note, problem, unknown, warning
from nanoagent.results import failures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Answer

_ACL_RULE: Final = (
    "~job:* ~nanoagent:* ~cancel:* &result:* &cancel:* &nanoagent:follow:* +ping +select +eval +evalsha "
    "+get +exists +setex +expire +del +time +hget +hset +hmget +hincrby +hdel +sadd +scard +zadd +zrem "
    "+zremrangebyscore +xadd +xrange +xrevrange +xdel +publish +subscribe +unsubscribe"
)
_NEARLY_FULL: Final = 0.9


def judge(settings: Settings, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    """Return all findings about Redis.

    Args:
        settings: The worker's settings.
        answers: The answers by name, see `gather.redis.collect`.
    """
    server = f"Redis at {settings.redis_host}:{settings.redis_port}"
    ping = answers["ping"]
    unfit = _unfit(server, answers.get("verify"))
    if unfit is not None:
        yield unfit
        return
    if ping.code is not None:
        yield _unreachable(server, settings, ping)
        return
    info = answers.get("info")
    fields = _fields_of(info.data) if info is not None and info.code is None else {}
    name, version = "Redis", fields.get("redis_version", "of unknown version")
    if "valkey_version" in fields:
        name, version = "Valkey", fields["valkey_version"]
    yield Finding(Area.REDIS, f"{server} answers ({name} {version})")
    yield from _permissions(settings, answers)
    if fields:
        yield from _retention(fields)
        yield from _persistence(fields)
    else:
        yield unknown(
            Area.REDIS,
            "version, eviction and persistence: INFO is refused",
            "allow it during the examination: ACL SETUSER … +info",
        )
    yield from _protection(settings)


def _unfit(server: str, verified: Answer | None) -> Finding | None:
    """Return the finding for a failure that needs a changed setting, with the worker's own message."""
    failure = None if verified is None else verified.data
    if (
        not isinstance(failure, failures.RedisCallError)
        or failure.kind not in failures.CONFIGURATION_FAILURES
    ):
        return None
    fault, _, remedy = failure.kind.message.partition(": ")
    return problem(Area.REDIS, f"{server}: {fault}", remedy)


def _unreachable(server: str, settings: Settings, answer: Answer) -> Finding:
    """Return the finding for a PING that failed."""
    message = answer.message or answer.code or ""
    if "Authentication" in (answer.code or "") or "WRONGPASS" in message or "NOAUTH" in message:
        if settings.redis_password is None:
            return problem(Area.REDIS, f"{server} requires a password", "set REDIS_PASSWORD")
        return problem(
            Area.REDIS,
            f"{server} refuses the user or the password",
            "correct REDIS_USERNAME and REDIS_PASSWORD",
        )
    if answer.code == "NoPermissionError":
        return problem(Area.REDIS, f"{server}: {message}", _acl_command(settings))
    if answer.code == "BusyLoadingError":
        return problem(Area.REDIS, f"{server} is loading its data", "wait until it has loaded them")
    if "invalid DB index" in message or "DB index is out of range" in message:
        return problem(Area.REDIS, f"{server} has no database {settings.redis_db}", "correct REDIS_DB")
    remedy = (
        "start it, or correct REDIS_HOST and REDIS_PORT; its firewall and its setting `bind` must allow this "
        "machine"
    )
    if "closed" in message or "SSL" in message or "reset" in message:
        other = "false" if settings.redis_tls else "true"
        remedy = f"REDIS_TLS={other}, if the server expects that; {remedy}"
    return problem(Area.REDIS, f"{server} does not answer: {message}", remedy)


def _acl_command(settings: Settings) -> str:
    return f"ACL SETUSER {settings.redis_username or 'default'} {_ACL_RULE}"


def _permissions(settings: Settings, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    """Judge whether Redis executed each of the worker's commands."""
    tried = {command: answers[command] for command in REDIS_COMMANDS if command in answers}
    refused = {command: answer for command, answer in tried.items() if answer.code is not None}
    if tried and not refused:
        yield Finding(Area.REDIS, f"all commands of the worker are allowed ({', '.join(tried).upper()})")
    elif refused:
        yield _refused(settings, refused)


def _refused(settings: Settings, refused: Mapping[str, Answer]) -> Finding:
    codes = {answer.code for answer in refused.values()}
    messages = " ".join(answer.message for answer in refused.values())
    commands = f"{', '.join(refused).upper()} refused"
    if "ReadOnlyError" in codes:
        return problem(Area.REDIS, f"it is a read-only replica: {commands}", "set REDIS_HOST to the primary")
    if "OutOfMemoryError" in codes or "OOM " in messages:
        return problem(Area.REDIS, f"its memory is used up: {commands}", "raise it with CONFIG SET maxmemory")
    if "MISCONF" in messages:
        return problem(
            Area.REDIS,
            f"it refuses writes because it cannot save to its disk: {commands}",
            "give its folder (CONFIG GET dir) space and write permission; its log has the reason",
        )
    first = next(iter(refused.values()))
    return problem(Area.REDIS, f"{commands}: {first.message or first.code}", _acl_command(settings))


def _retention(fields: Mapping[str, str]) -> Iterator[Finding]:
    """Judge whether results remain in memory until they are read."""
    policy = fields.get("maxmemory_policy", "")
    limit, used = _number(fields.get("maxmemory")), _number(fields.get("used_memory"))
    if limit and policy and policy != "noeviction":
        yield warning(
            Area.REDIS,
            f"maxmemory-policy is {policy}: Redis may evict results before they are read",
            "CONFIG SET maxmemory-policy noeviction",
        )
    elif policy:
        reason = "" if limit else " (maxmemory is not set)"
        yield Finding(Area.REDIS, f"results are not evicted before they expire{reason}")
    if limit and used and used > limit * _NEARLY_FULL:
        yield warning(
            Area.REDIS,
            f"{used * 100 // limit} % of its memory are used",
            "raise maxmemory, or lower RESULT_TTL_SECONDS",
        )


def _persistence(fields: Mapping[str, str]) -> Iterator[Finding]:
    """Judge whether results survive a restart of Redis."""
    if fields.get("role") == "slave":
        yield problem(Area.REDIS, "it is a replica, not the primary", "set REDIS_HOST to the primary")
    if fields.get("rdb_last_bgsave_status") == "err":
        yield warning(
            Area.REDIS,
            "its last save to disk failed",
            "give its folder space and write permission; its log has the reason",
        )
    if fields.get("aof_enabled") == "0" and _number(fields.get("rdb_last_save_time")) is not None:
        yield note(
            Area.REDIS,
            "no append-only file: a restart loses the results since the last save",
            "CONFIG SET appendonly yes, if the readers of results need them",
        )


def _protection(settings: Settings) -> Iterator[Finding]:
    """Judge whether other machines can read or forge results."""
    if is_loopback(settings.redis_host):
        return
    if not settings.redis_tls:
        sent = "results and the password" if settings.redis_password else "results"
        yield warning(
            Area.REDIS,
            f"{sent} go to {settings.redis_host} unencrypted",
            "REDIS_TLS=true, if the server supports TLS",
        )
    if not settings.redis_password:
        yield warning(
            Area.REDIS,
            "no password is set: any client that reaches Redis may read and forge results",
            "set requirepass or an ACL on the server, and REDIS_PASSWORD",
        )


def is_loopback(host: str) -> bool:
    """Whether the name or the address means this machine. Names are not resolved."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("/")


def _fields_of(info: object) -> dict[str, str]:
    """Parse the answer to INFO: field → value."""
    text = info.decode(errors="replace") if isinstance(info, bytes) else str(info or "")
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, found, value in pairs if found and not name.startswith("#")}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
