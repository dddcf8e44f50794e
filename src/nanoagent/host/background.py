"""Starts background tasks, restarts tasks that fail, and reports failures.

A kept task runs as long as the worker. If it fails, the failure is logged and counted, and the task is
started again after a pause. The pause grows with each further failure. While a task that jobs need is down,
the worker is not ready and takes no jobs. The task is up again after it has run for `_TRIAL_S` without a
failure.

A short task runs once, and no caller waits for its result. If it fails, the failure is logged and counted.
The comment at each short task in `KINDS` says how its work is done after a failure.

`KINDS` lists all tasks. A test compares every call that starts a task with this table.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import structlog

from nanoagent.common.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = structlog.get_logger(__name__)

_PAUSE_S: Final = 0.2
_PAUSE_MAX_S: Final = 30.0
_TRIAL_S: Final = 1.0


class TaskName(StrEnum):
    """The name of a background task, in logs and in the metrics' label `task`."""

    INTAKE = "intake"
    READINESS_CHECKS = "readiness_checks"
    LEASE_RENEWAL = "lease_renewal"
    LEASE_EXPIRY = "lease_expiry"
    REDRIVE_POLICY = "redrive_policy"
    MESSAGE_DELETION = "message_deletion"
    MESSAGE_RETURN = "message_return"
    CLAIM_RENEWAL = "claim_renewal"
    CLAIM_RELEASE = "claim_release"
    RESULT_DELIVERY = "result_delivery"
    CANCELLATIONS = "cancellations"
    CANCELLATION_LOOKUP = "cancellation_lookup"
    POOL_SWEEP = "pool_sweep"
    ENGINE_EVENTS = "engine_events"
    ENGINE_CHECK = "engine_check"
    CONTAINER_CREATION = "container_creation"
    CONTAINER_REMOVAL = "container_removal"
    CLOUDWATCH = "cloudwatch"
    SELF_TEST = "self_test"
    INTERRUPTION_NOTICES = "interruption_notices"
    WATCHDOG = "watchdog"
    DESCRIPTOR_CLOSING = "descriptor_closing"
    BYTE_CODE_COMPILATION = "byte_code_compilation"
    LIVE_LOG = "live_log"


@dataclass(frozen=True, slots=True)
class Kind:
    """The kind of a background task.

    Attributes:
        kept: Whether the task runs as long as the worker, and is started again when it fails.
        missing: The work that is not done while a kept task is down, as a sentence. None if the worker can
            take jobs without the task.
    """

    kept: bool
    missing: str | None = None


_SHORT: Final = Kind(kept=False)
_DISPENSABLE: Final = Kind(kept=True)

KINDS: Final = {
    TaskName.INTAKE: Kind(kept=True, missing="messages are not received"),
    TaskName.READINESS_CHECKS: Kind(kept=True, missing="the parts of the worker are not checked"),
    TaskName.LEASE_RENEWAL: Kind(kept=True, missing="the leases on messages are not renewed"),
    TaskName.LEASE_EXPIRY: Kind(kept=True, missing="jobs whose lease has ended are not stopped"),
    TaskName.REDRIVE_POLICY: _DISPENSABLE,  # the policy that was read last remains valid
    TaskName.MESSAGE_DELETION: _SHORT,  # repeated; if all attempts fail, the message is received again
    TaskName.MESSAGE_RETURN: _SHORT,  # the message is received again when its visibility timeout ends
    TaskName.CLAIM_RENEWAL: Kind(kept=True, missing="the claims on requests are not renewed"),
    TaskName.CLAIM_RELEASE: _SHORT,  # the claim expires
    TaskName.RESULT_DELIVERY: Kind(kept=True, missing="kept results are not delivered"),
    TaskName.CANCELLATIONS: Kind(kept=True, missing="cancellations are not received"),
    TaskName.CANCELLATION_LOOKUP: _SHORT,  # repeated at the next subscription
    TaskName.POOL_SWEEP: Kind(kept=True, missing="idle containers are not retired or replaced"),
    TaskName.ENGINE_EVENTS: Kind(kept=True, missing="deaths of containers are not noticed"),
    TaskName.ENGINE_CHECK: Kind(kept=True, missing="Docker is not checked"),
    TaskName.CONTAINER_CREATION: _SHORT,  # the pool's sweep requests another container
    TaskName.CONTAINER_REMOVAL: _SHORT,  # a leftover is removed as a stray container
    TaskName.CLOUDWATCH: _DISPENSABLE,  # contract, section 5: it never fails a job
    TaskName.SELF_TEST: Kind(kept=True, missing="the isolation of runs is not tested"),
    TaskName.INTERRUPTION_NOTICES: _DISPENSABLE,  # without it, messages return when their leases end
    TaskName.WATCHDOG: _DISPENSABLE,  # systemd restarts a worker that sends no watchdog messages
    TaskName.DESCRIPTOR_CLOSING: _DISPENSABLE,  # the thread continues with the next descriptor
    TaskName.LIVE_LOG: _SHORT,  # followers see the output at the end of the job, or when they follow again
    TaskName.BYTE_CODE_COMPILATION: _SHORT,  # runs compile their modules; a later run starts another one
}


def next_pause_s(backoff: Backoff, ran_s: float) -> float:
    """Return the pause before a failed task is started again, in seconds.

    Args:
        backoff: Counts the task's failures. It is reset if the task ran longer than the longest pause.
        ran_s: How long the task ran before it failed, seconds.
    """
    if ran_s > backoff.longest_s:
        backoff.reset()
    return backoff.next_s()


class Background:
    """Starts background tasks. It belongs to one event loop.

    Args:
        failed: Called with the task's name for each failure.
        report: Called when a kept task that jobs need goes down or up. Its arguments: whether all of these
            tasks are up, and the reason if not.
        pause_s: The pause after the first failure, seconds.
        pause_max_s: The longest pause, seconds.
        trial_s: How long a restarted task must run before it counts as up again, seconds.
    """

    def __init__(
        self,
        failed: Callable[[TaskName], object] = lambda _: None,
        report: Callable[[bool, str], object] = lambda _, __: None,
        *,
        pause_s: float = _PAUSE_S,
        pause_max_s: float = _PAUSE_MAX_S,
        trial_s: float = _TRIAL_S,
    ) -> None:
        self._failed = failed
        self._report = report
        self._pause_s = pause_s
        self._pause_max_s = pause_max_s
        self._trial_s = trial_s
        self._down: dict[TaskName, str] = {}
        _instances.add(self)

    def not_ready_reason(self) -> str | None:
        """Return which kept tasks that jobs need are down; None if all are up."""
        return self._reason() or None

    def keep(
        self,
        name: TaskName,
        work: Callable[[], Coroutine[Any, Any, None]],
        *,
        until: asyncio.Event | None = None,
    ) -> asyncio.Task[None]:
        """Start a kept task, and start it again whenever it fails.

        Args:
            name: Its name, the name of a kept task in `KINDS`.
            work: Creates the coroutine; called for each start. The task ends when the coroutine returns.
            until: When this event is set, the pause before a new start ends at once.

        Returns:
            The task. Cancel it to stop the work.
        """
        assert KINDS[name].kept  # noqa: S101 - callers and the table must agree
        # A new context: the first job starts some of these tasks, and their log entries must not have the
        # fields of that job.
        return asyncio.create_task(
            self._keep(name, work, until or asyncio.Event()), name=name, context=contextvars.Context()
        )

    def once(
        self, name: TaskName, work: Coroutine[Any, Any, Any], into: set[asyncio.Task[Any]]
    ) -> asyncio.Task[Any]:
        """Start a short task.

        Args:
            name: Its name, the name of a short task in `KINDS`.
            work: The coroutine.
            into: A set that keeps the task until it has ended.
        """
        assert not KINDS[name].kept  # noqa: S101 - callers and the table must agree
        task = asyncio.create_task(work, name=name)
        into.add(task)

        def ended(task: asyncio.Task[Any]) -> None:
            into.discard(task)
            if not task.cancelled() and (failure := task.exception()) is not None:
                self.note_failure(name, failure)

        task.add_done_callback(ended)
        return task

    def note_failure(self, name: TaskName, failure: BaseException, **details: object) -> None:
        """Log and count a failure."""
        _log_failure(name, failure, **details)
        self.count_failure(name)

    def count_failure(self, name: TaskName) -> None:
        """Count a failure that is already logged."""
        self._failed(name)

    async def _keep(
        self, name: TaskName, work: Callable[[], Coroutine[Any, Any, None]], until: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._pause_s, self._pause_max_s)
        try:
            while True:
                began_at = loop.time()
                failure = await self._run(name, work)
                if failure is None:
                    return
                ran_s = loop.time() - began_at
                pause_s = next_pause_s(backoff, ran_s)
                self.note_failure(name, failure, restart_in_s=pause_s)
                self._set_down(name, failure)
                await _pause(pause_s, until)
        finally:
            self._set_up(name)

    async def _run(
        self, name: TaskName, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> BaseException | None:
        """Run the task once. Returns its failure; None if it ended without one."""
        loop = asyncio.get_running_loop()
        on_trial = loop.call_later(self._trial_s, self._set_up, name) if name in self._down else None
        try:
            await work()
        except asyncio.CancelledError as exc:
            # If the task itself was not cancelled, a future that it waits for was. That is a failure.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return exc
        except Exception as exc:  # noqa: BLE001 - the caller logs it
            return exc
        finally:
            if on_trial is not None:
                on_trial.cancel()
        return None

    def _set_down(self, name: TaskName, failure: BaseException) -> None:
        if (missing := KINDS[name].missing) is not None:
            problem = f"the background task {name} failed ({type(failure).__name__}) and is restarted"
            self._down[name] = f"{missing}: {problem}"
            self._report(False, self._reason())

    def _set_up(self, name: TaskName) -> None:
        if self._down.pop(name, None) is not None:
            reason = self._reason()
            self._report(not reason, reason)

    def _reason(self) -> str:
        return "; ".join(self._down.values())


def _log_failure(name: TaskName, failure: BaseException, **details: object) -> None:
    log.error("background task failed", task=str(name), exc_info=failure, **details)


_instances: Final[weakref.WeakSet[Background]] = weakref.WeakSet()


def keep_thread(name: TaskName, step: Callable[[], object]) -> threading.Thread:
    """Start a daemon thread that repeats a step until the process ends.

    A failure of a step is logged and counted, and the thread continues with the next step.
    """
    assert KINDS[name].kept  # noqa: S101 - callers and the table must agree

    def work() -> None:
        while True:
            try:
                step()
            except Exception as exc:  # noqa: BLE001 - it is logged, and the thread must continue
                _log_failure(name, exc)
                for background in list(_instances):
                    background.count_failure(name)

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


async def _pause(seconds: float, until: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await until.wait()
    except TimeoutError:
        pass
