"""Redis: whether it is there, takes what the worker writes, and keeps it. Facts in, findings out.

Sources: redis.io, "ACL", "Key eviction", "INFO"; the exceptions are redis-py's.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from nanoagent.doctor.finding import Area, Finding, note, problem, unknown, warning
from nanoagent.results import failures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Answer

COMMANDS: Final = ("setex", "get", "publish", "sadd", "scard", "expire", "eval")
"""What the worker does on Redis, apart from PING."""

_RIGHTS: Final = (
    "~job:* ~nanoagent:* ~cancel:* &result:* &cancel:* +ping +select +eval +evalsha +get +exists "
    "+setex +expire +del +time +hget +hset +hmget +hincrby +hdel +sadd +scard +publish +subscribe "
    "+unsubscribe"
)
_NEARLY_FULL: Final = 0.9


def judge(settings: Settings, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    """The findings about Redis.

    Args:
        settings: The settings that name it.
        answers: The answers to `verify` (as the worker does at its start), PING, INFO and each of `COMMANDS`.
    """
    server = f"Redis at {settings.redis_host}:{settings.redis_port}"
    ping = answers["ping"]
    refusal = unusable(server, answers.get("verify"))
    if refusal is not None:
        yield refusal
        return
    if ping.code is not None:
        yield unreachable(server, settings, ping)
        return
    info = answers.get("info")
    fields = fields_of(info.data) if info is not None and info.code is None else {}
    name, version = "Redis", fields.get("redis_version", "of unknown version")
    if "valkey_version" in fields:
        name, version = "Valkey", fields["valkey_version"]
    yield Finding(Area.REDIS, f"{server} answers ({name} {version})")
    yield from rights(settings, answers)
    if fields:
        yield from keeping(fields)
    else:
        yield unknown(
            Area.REDIS,
            "version, eviction and persistence: INFO is refused",
            "ACL SETUSER … +info while you look",
        )
    yield from transport(settings)


def unusable(server: str, verified: Answer | None) -> Finding | None:
    """The finding for a failure that retries cannot solve, in the worker's words."""
    failure = None if verified is None else verified.data
    if not isinstance(failure, failures.RedisCallError) or failure.kind not in failures.BY_SETTINGS:
        return None
    wrong, _, remedy = failure.kind.message.partition(": ")
    return problem(Area.REDIS, f"{server}: {wrong}", remedy)


def unreachable(server: str, settings: Settings, answer: Answer) -> Finding:
    """Why it does not serve, and what to do."""
    said = answer.message or answer.code or ""
    if "Authentication" in (answer.code or "") or "WRONGPASS" in said or "NOAUTH" in said:
        lacks = settings.redis_password is None
        return problem(
            Area.REDIS,
            f"{server} wants {'a password' if lacks else 'another user or password'}",
            "REDIS_PASSWORD" if lacks else "REDIS_USERNAME and REDIS_PASSWORD",
        )
    if answer.code == "NoPermissionError":
        return problem(
            Area.REDIS, f"{server}: {said}", f"ACL SETUSER {settings.redis_username or 'default'} {_RIGHTS}"
        )
    if answer.code == "BusyLoadingError":
        return problem(Area.REDIS, f"{server} is loading its data", "wait")
    if "invalid DB index" in said or "DB index is out of range" in said:
        return problem(Area.REDIS, f"{server}: no database {settings.redis_db}", "REDIS_DB")
    remedy = "start it, or set REDIS_HOST and REDIS_PORT; its firewall and `bind` must let this machine in"
    if "closed" in said or "SSL" in said or "reset" in said:
        other = "false" if settings.redis_tls else "true"
        remedy = f"REDIS_TLS={other}, if that is what it speaks; {remedy}"
    return problem(Area.REDIS, f"{server} does not serve: {said}", remedy)


def rights(settings: Settings, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    """Whether each of the worker's commands was taken."""
    tried = {command: answers[command] for command in COMMANDS if command in answers}
    refused = {command: answer for command, answer in tried.items() if answer.code is not None}
    if tried and not refused:
        yield Finding(Area.REDIS, f"all that the worker does is allowed ({', '.join(tried).upper()})")
        return
    kinds = {answer.code for answer in refused.values()}
    texts = " ".join(answer.message for answer in refused.values())
    names = ", ".join(refused).upper()
    if "ReadOnlyError" in kinds:
        yield problem(Area.REDIS, f"it is a read-only replica: {names} refused", "REDIS_HOST of the primary")
    elif "OutOfMemoryError" in kinds or "OOM " in texts:
        yield problem(
            Area.REDIS, f"its memory is used up: {names} refused", "a larger maxmemory; CONFIG SET maxmemory"
        )
    elif "MISCONF" in texts:
        yield problem(
            Area.REDIS,
            f"it refuses writes since it cannot save to its disk: {names} refused",
            "room and rights for its dir (CONFIG GET dir); its log says why",
        )
    elif refused:
        first = next(iter(refused.values()))
        yield problem(
            Area.REDIS,
            f"{names} refused: {first.message or first.code}",
            f"ACL SETUSER {settings.redis_username or 'default'} {_RIGHTS}",
        )


def keeping(fields: Mapping[str, str]) -> Iterator[Finding]:
    """Whether results stay until they are read."""
    policy = fields.get("maxmemory_policy", "")
    most, used = _number(fields.get("maxmemory")), _number(fields.get("used_memory"))
    if most and policy and policy != "noeviction":
        yield warning(
            Area.REDIS,
            f"maxmemory-policy is {policy}: results may be dropped before they are read, for all of them "
            "expire some day",
            "CONFIG SET maxmemory-policy noeviction",
        )
    elif policy:
        yield Finding(
            Area.REDIS, "nothing is dropped before its time" + ("" if most else " (no maxmemory is set)")
        )
    if most and used and used > most * _NEARLY_FULL:
        yield warning(
            Area.REDIS,
            f"{used * 100 // most} % of its memory are used",
            "a larger maxmemory, or a shorter RESULT_TTL_SECONDS",
        )
    if fields.get("role") == "slave":
        yield problem(Area.REDIS, "it is a replica, not the primary", "REDIS_HOST of the primary")
    if fields.get("rdb_last_bgsave_status") == "err":
        yield warning(
            Area.REDIS, "its last save to disk failed", "room and rights for its dir; its log says why"
        )
    if fields.get("aof_enabled") == "0" and _number(fields.get("rdb_last_save_time")) is not None:
        yield note(
            Area.REDIS,
            "no append-only file: results since its last save are lost when it is restarted",
            "CONFIG SET appendonly yes, if that matters to who reads them",
        )


def transport(settings: Settings) -> Iterator[Finding]:
    """Who could read along, or write results of his own."""
    if is_loopback(settings.redis_host):
        return
    if not settings.redis_tls:
        yield warning(
            Area.REDIS,
            f"results{' and the password' if settings.redis_password else ''} go to {settings.redis_host} "
            "unencrypted",
            "REDIS_TLS=true, where the server speaks TLS",
        )
    if not settings.redis_password:
        yield warning(
            Area.REDIS,
            "no password is set: any client that reaches it may read and forge results",
            "requirepass or ACL on the server, and REDIS_PASSWORD",
        )


def is_loopback(host: str) -> bool:
    """Whether that is this machine, by its name or address alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("/")


def fields_of(info: object) -> dict[str, str]:
    """INFO's answer, a field a line."""
    text = info.decode(errors="replace") if isinstance(info, bytes) else str(info or "")
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, found, value in pairs if found and not name.startswith("#")}


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
