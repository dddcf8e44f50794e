"""`python -m support.agents.faulty_agent`: a worker that dies or stops at a named step.

The production code has no test code: this module replaces the methods in `STEPS`, and then runs the command
line as usual. The variable FAULT has the fault, in the format of `Fault.text`. Before the fault occurs, the
log has the event `struck`, with the request if there is one.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent import cli

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from nanoagent.broker.base import Delivery

FAULT: Final = "FAULT"

STEPS: Final = {
    "create": ("nanoagent.container.docker", "DockerDriver.create"),
    "remove": ("nanoagent.container.docker", "DockerDriver.remove"),
    "receive": ("nanoagent.broker.sqs", "SqsBroker.receive"),
    "claim": ("nanoagent.results.redis", "RedisResultStore.claim"),
    "fetch": ("nanoagent.code.code_cache", "CodeCache.fetch"),
    "unpack": ("nanoagent.code.disk_cache", "DiskCache.publish"),
    "lease": ("nanoagent.container.pool", "Pool.acquire"),
    "start": ("nanoagent.supervisor.session", "Session.start"),
    "run": ("nanoagent.supervisor.session", "Session.wait_exit"),
    "collect": ("nanoagent.supervisor.session", "Session.collect"),
    "upload": ("nanoagent.storage.s3", "S3Store.put"),
    "publish": ("nanoagent.results.redis", "RedisResultStore.publish"),
    "keep": ("nanoagent.results.spool", "Spool.keep"),
    "write": ("os", "fsync"),
    "ack": ("nanoagent.broker.sqs", "SqsBroker.ack"),
    "delete": ("nanoagent.broker.sqs_deletions", "Deletions._try"),
    "nack": ("nanoagent.broker.sqs", "SqsBroker.nack"),
    "dead_letter": ("nanoagent.broker.sqs", "SqsBroker.dead_letter"),
    "drain": ("nanoagent.worker.drain", "Drain.run"),
}
"""Step → module and method. If a method was renamed, the worker does not start, and the test fails."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A signal at a step of the worker.

    Attributes:
        step: One of `STEPS`.
        moment: `before` the step, or `after` it has succeeded.
        nth: At which call of the step, from 1. An empty receive does not count.
        signal: The signal that the worker sends to itself: SIGKILL or SIGSTOP.
        delay_s: The time from `before` to the signal, in seconds, for long steps.
        told_to_stop: The number of SIGTERM signals that the worker gets when its first program runs.
    """

    step: str
    moment: str
    nth: int = 1
    signal: str = "SIGKILL"
    delay_s: float = 0
    told_to_stop: int = 0

    def text(self) -> str:
        """The value of the variable FAULT."""
        return json.dumps(asdict(self))


class _Striker:
    """Counts the calls of a step, and sends the signal at the chosen one."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._times = 0

    def is_due(self, moment: str) -> bool:
        if moment != self._fault.moment:
            return False
        self._times += 1
        return self._times == self._fault.nth

    def strike(self, received: Sequence[Delivery] = ()) -> None:
        fault = self._fault
        # After the receipt alone, the context of the log has no request yet.
        for delivery in received:
            structlog.contextvars.bind_contextvars(request_id=json.loads(delivery.body)["requestId"])
        structlog.get_logger().warning("struck", step=fault.step, moment=fault.moment)
        sys.stderr.flush()
        os.kill(os.getpid(), signal.Signals[fault.signal])

    def before(self) -> None:
        if not self.is_due("before"):
            return
        if self._fault.delay_s:
            asyncio.get_running_loop().call_later(self._fault.delay_s, self.strike)
        else:
            self.strike()

    def after(self, answer: Any) -> None:
        received = answer if self._fault.step == "receive" else ()
        if (received or self._fault.step != "receive") and self.is_due("after"):
            self.strike(received)


def _struck(method: Callable[..., Any], striker: _Striker) -> Callable[..., Any]:
    """Return the method with the fault before or after it: a function, a coroutine or a context manager."""
    if inspect.iscoroutinefunction(method):

        async def call(*arguments: Any, **named: Any) -> Any:
            striker.before()
            answer = await method(*arguments, **named)
            striker.after(answer)
            return answer

        return call
    if inspect.isasyncgenfunction(inspect.unwrap(method)):  # an asynccontextmanager: the step is its entry

        @asynccontextmanager
        async def enter(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
            striker.before()
            async with method(*arguments, **named) as entered:
                striker.after(entered)
                yield entered

        return enter

    def plain(*arguments: Any, **named: Any) -> Any:
        striker.before()
        answer = method(*arguments, **named)
        striker.after(answer)
        return answer

    return plain


class _Operator(_Striker):
    """Sends SIGTERM once or twice as soon as a program runs."""

    def strike(self, received: Sequence[Delivery] = ()) -> None:
        for _ in range(self._fault.told_to_stop):
            os.kill(os.getpid(), signal.SIGTERM)


def arm(fault: Fault) -> None:
    """Replace the method of the step by one with the fault."""
    if fault.told_to_stop:
        _replace("run", _Operator(Fault("run", "before", told_to_stop=fault.told_to_stop)))
    _replace(fault.step, _Striker(fault))


def _replace(step: str, striker: _Striker) -> None:
    module_name, path = STEPS[step]
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    setattr(owner, name, _struck(getattr(owner, name), striker))


if __name__ == "__main__":
    arm(Fault(**json.loads(os.environ[FAULT])))
    sys.exit(cli.main())
