"""Facts about Redis, from the worker's commands on keys that expire after a second."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from nanoagent.doctor.facts import REDIS_COMMANDS
from nanoagent.doctor.gather.answers import ask, ask_all
from nanoagent.results.base import Claim
from nanoagent.results.failures import RedisCallError
from nanoagent.results.live_log import Kind, Record
from nanoagent.wiring import services

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Answer
    from nanoagent.results.redis import RedisResultStore


async def collect(settings: Settings) -> dict[str, Answer]:
    """Send the worker's commands to Redis.

    Returns:
        The answers by name: `verify` (the worker's check at its start), `ping`, `info` and `REDIS_COMMANDS`.
        If PING fails, only `verify` and `ping`.
    """
    async with AsyncExitStack() as opened:
        result_store = services.redis_result_store(settings.model_copy(update={"result_ttl_seconds": 1}))
        opened.push_async_callback(result_store.close)
        answers = {
            "verify": await ask(lambda: _verify(result_store)),
            "ping": await ask(lambda: result_store.ask("PING")),
        }
        if answers["ping"].code is None:
            answers |= await ask_all(_requests(result_store))
        return answers


async def _verify(result_store: RedisResultStore) -> RedisCallError | None:
    """Return the failure that the worker would have at its start; None without a failure."""
    try:
        await result_store.verify()
    except RedisCallError as exc:
        return exc
    return None


def _requests(result_store: RedisResultStore) -> dict[str, Callable[[], Awaitable[Any]]]:
    name = f"nanoagent-doctor-{secrets.token_hex(8)}"
    failures = f"nanoagent:failed:{name}"
    requests: dict[str, Callable[[], Awaitable[Any]]] = {
        "info": lambda: result_store.ask("INFO", "everything"),
        "setex": lambda: result_store.ask("SETEX", f"job:{name}", 1, "doctor"),
        "get": lambda: result_store.ask("GET", f"job:{name}"),
        "publish": lambda: result_store.ask("PUBLISH", f"result:{name}", "doctor"),
        "sadd": lambda: _add(result_store, failures),
        "scard": lambda: result_store.ask("SCARD", failures),
        "expire": lambda: result_store.ask("EXPIRE", failures, 1),
        "eval": lambda: _claim_and_publish(result_store, f"{name}-claim"),
    }
    assert {"info", *REDIS_COMMANDS} == set(requests)  # noqa: S101 - both lists must have the same commands
    return requests


async def _claim_and_publish(result_store: RedisResultStore, request_id: str) -> Any:
    """Claim a request that does not exist, store output, and publish an answer.

    This ends the claim. The output and the answer expire.
    """
    claim = await result_store.claim(request_id)
    if not isinstance(claim, Claim):
        return False
    await result_store.live_log(ttl_s=1, max_bytes=1).append(claim, [Record(Kind.STDOUT, 1)])
    return await result_store.publish(claim, b"doctor")


async def _add(result_store: RedisResultStore, failures: str) -> Any:
    """Send SADD, which creates a key without an expiry, and EXPIRE.

    Before SADD, EXPIRE is sent once as a test. If Redis refuses EXPIRE, SADD is not sent, so no key remains.
    """
    await result_store.ask("EXPIRE", failures, 1)
    try:
        return await result_store.ask("SADD", failures, "doctor")
    finally:
        await result_store.ask("EXPIRE", failures, 1)
