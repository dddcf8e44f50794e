"""The jobs that wait for a container to be created."""

from __future__ import annotations

import pytest

from nanoagent.container.waiting import WaitingJobs
from nanoagent.model.errors import ContainerNotMade
from nanoagent.model.job import Runtime


async def test_the_job_that_has_waited_for_longest_is_first():
    waiting = WaitingJobs()
    first, second = (waiting.add(Runtime.GO) for _ in range(2))
    assert (waiting.count(Runtime.GO), waiting.count(Runtime.PYTHON)) == (2, 0)
    assert [waiting.take_first(Runtime.GO) for _ in range(3)] == [first, second, None]


async def test_a_job_that_was_cancelled_gets_no_container():
    waiting = WaitingJobs()
    cancelled, waits = (waiting.add(Runtime.GO) for _ in range(2))
    cancelled.cancel()
    assert waiting.take_first(Runtime.GO) is waits
    waiting.discard(Runtime.GO, cancelled)
    waiting.discard(Runtime.GO, cancelled)  # as its task does in any case
    assert waiting.count(Runtime.GO) == 0


async def test_one_failure_is_told_to_one_job():
    waiting = WaitingJobs()
    first, second = (waiting.add(Runtime.GO) for _ in range(2))
    waiting.fail_first(Runtime.GO, ContainerNotMade("no space"))
    with pytest.raises(ContainerNotMade, match="no space"):
        await first
    assert not second.done()
    waiting.fail_first(Runtime.PYTHON, ContainerNotMade("nobody waits"))


async def test_a_failure_is_told_to_the_first_job_that_still_waits():
    waiting = WaitingJobs()
    cancelled, waits, last = (waiting.add(Runtime.GO) for _ in range(3))
    cancelled.cancel()  # its task has not resumed yet
    waiting.fail_first(Runtime.GO, ContainerNotMade("no space"))
    assert waits.done()
    assert isinstance(waits.exception(), ContainerNotMade)
    assert not last.done()


async def test_all_jobs_are_told_at_once_each_by_an_error_of_its_own():
    waiting = WaitingJobs()
    waiters = [waiting.add(runtime) for runtime in Runtime]
    waiters[0].cancel()
    waiting.fail_all(lambda: ContainerNotMade("closed"))
    errors = [waiter.exception() for waiter in waiters[1:]]
    assert all(isinstance(error, ContainerNotMade) for error in errors)
    assert len(set(map(id, errors))) == len(errors)
    assert not any(map(waiting.count, Runtime))
