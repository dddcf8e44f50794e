"""Calls of the embedded stack's services share their clients, whichever event loop they come from."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from nanoagent.dev.local_services.calls import ServiceCalls, with_shared_clients

if TYPE_CHECKING:
    from nanoagent.aws.clients import AwsClients


class FakeClients:
    """Clients that belong to the loop of their first use, as real ones do."""

    def __init__(self) -> None:
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.closed = 0

    async def use(self) -> None:
        self.loops.add(asyncio.get_running_loop())

    async def close(self) -> None:
        await self.use()
        self.closed += 1


class Service:
    def __init__(self, calls: ServiceCalls) -> None:
        self._calls = calls

    @with_shared_clients
    async def call(self, answer: int) -> int:
        await cast("Any", self._calls.clients).use()
        if answer < 0:
            raise ValueError(f"{answer} is negative")
        return answer

    @with_shared_clients
    async def nested(self, answer: int) -> int:
        return await self.call(answer)


def test_calls_from_several_loops_use_the_same_clients_in_one_loop():
    made: list[FakeClients] = []

    def make() -> AwsClients:
        made.append(FakeClients())
        return cast("AwsClients", made[-1])

    with ServiceCalls(make) as calls:
        service = Service(calls)
        assert [asyncio.run(service.call(1)), asyncio.run(service.nested(2))] == [1, 2]
    (clients,) = made
    assert (len(clients.loops), clients.closed) == (1, 1)


def test_an_error_reaches_the_caller_and_later_calls_are_possible():
    with ServiceCalls(lambda: cast("AwsClients", FakeClients())) as calls:
        service = Service(calls)
        with pytest.raises(ValueError, match="-1 is negative"):
            asyncio.run(service.call(-1))
        assert asyncio.run(service.call(3)) == 3
