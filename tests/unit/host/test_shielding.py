from __future__ import annotations

import asyncio

import pytest

from nanoagent.host.shielding import uninterrupted, unless_cancelled, until_done


class UnexpectedError(Exception):
    pass


class Work:
    """Work that lasts until it is told to end."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.begun = asyncio.Event()
        self.end = asyncio.Event()
        self._failure = failure

    async def __call__(self) -> str:
        self.begun.set()
        await self.end.wait()
        if self._failure is not None:
            raise self._failure
        return "done"


async def cancelled_twice(caller: asyncio.Task[str], work: Work) -> None:
    """Cancel the caller while the work is under way, again and again."""
    await work.begun.wait()
    for _ in range(2):
        caller.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not caller.done()


async def test_a_cancellation_comes_after_the_work():
    work = Work()
    task = asyncio.create_task(work())
    caller = asyncio.create_task(uninterrupted(task))
    await cancelled_twice(caller, work)
    work.end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert task.result() == "done"


async def test_without_a_cancellation_the_result_or_the_failure_is_the_works():
    work = Work()
    work.end.set()
    assert await uninterrupted(work()) == "done"
    failing = Work(UnexpectedError())
    failing.end.set()
    with pytest.raises(UnexpectedError):
        await uninterrupted(failing())


async def test_the_works_failure_comes_before_a_cancellation():
    work = Work(UnexpectedError())
    caller = asyncio.create_task(uninterrupted(work()))
    await cancelled_twice(caller, work)
    work.end.set()
    with pytest.raises(UnexpectedError):
        await caller


async def test_work_that_is_cancelled_itself_ends_the_wait():
    work = Work()
    task = asyncio.create_task(work())
    caller = asyncio.create_task(uninterrupted(task))
    await work.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_all_are_waited_for_and_nothing_is_raised_for_them():
    works = [Work(), Work(UnexpectedError())]
    tasks = [asyncio.create_task(work()) for work in works]

    async def wait() -> str:
        await until_done(*tasks)
        return "done"

    caller = asyncio.create_task(wait())
    works[0].end.set()
    await tasks[0]
    assert not caller.done()
    works[1].end.set()
    assert await caller == "done"
    assert isinstance(tasks[1].exception(), UnexpectedError)


async def test_nothing_is_waited_for_where_there_is_nothing():
    await until_done()


async def test_a_request_goes_on_without_the_caller_that_was_cancelled():
    work, abandoned = Work(), asyncio.Event()
    request = asyncio.create_task(work())
    caller = asyncio.create_task(unless_cancelled(request, abandoned.set))
    await work.begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert abandoned.is_set()
    work.end.set()
    assert await request == "done"


async def test_a_request_that_nobody_abandons_returns_its_result():
    work, abandoned = Work(), asyncio.Event()
    work.end.set()
    assert await unless_cancelled(asyncio.create_task(work()), abandoned.set) == "done"
    assert not abandoned.is_set()
