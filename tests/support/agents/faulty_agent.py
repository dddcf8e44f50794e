"""`python -m support.agents.faulty_agent`: an agent that dies or stops at a named step of its work.

The production code knows nothing of it: methods of its parts are replaced from outside, by `STEPS`, before
the command line runs as ever. What is to happen stands in the variable FAULT, as `Fault.text` writes it. The
log says `struck`, with the request if there is one, just before it does.
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
"""Step → module and method. One that was renamed fails the start of the agent, and with it the test."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens when a step is reached.

    Attributes:
        step: One of `STEPS`.
        moment: `before` the step, or `after` it has succeeded.
        nth: Which time, from 1. Receiving nothing does not count.
        signal: What the agent sends itself: SIGKILL or SIGSTOP.
        delay_s: How long after `before` it does, where the step takes longer.
        told_to_stop: How often it gets SIGTERM as soon as its first program runs.
    """

    step: str
    moment: str
    nth: int = 1
    signal: str = "SIGKILL"
    delay_s: float = 0
    told_to_stop: int = 0

    def text(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self))


class _Striker:
    """Counts the times that a step is reached, and strikes at the one that is meant."""

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
        # Of what has only been received, nothing stands in the log's context yet.
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
    """The method with the fault before or after it, of whichever kind it is."""
    if inspect.iscoroutinefunction(method):

        async def call(*arguments: Any, **named: Any) -> Any:
            striker.before()
            answer = await method(*arguments, **named)
            striker.after(answer)
            return answer

        return call
    if inspect.isasyncgenfunction(inspect.unwrap(method)):  # an asynccontextmanager: entering it is the step

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
    """Tells the agent to stop as soon as a program runs, once or twice."""

    def strike(self, received: Sequence[Delivery] = ()) -> None:
        for _ in range(self._fault.told_to_stop):
            os.kill(os.getpid(), signal.SIGTERM)


def arm(fault: Fault) -> None:
    """Replace the step's method by one that strikes."""
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
