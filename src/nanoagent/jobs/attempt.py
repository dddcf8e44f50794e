"""One attempt to run a job, and a run that has ended."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanoagent.container.execution import RunControl
from nanoagent.model.result import Timings
from nanoagent.network.base import AiUsage
from nanoagent.supervisor.wire import ImportsState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nanoagent.container.execution import Execution
    from nanoagent.model.job import Job
    from nanoagent.model.result import Isolation, Start


@dataclass(slots=True)
class Attempt:
    """One attempt to run a job.

    Attributes:
        job: The job.
        number: The number of the attempt, from 1; 0 for a job that was given up without an attempt.
        queue_ms: How long the message had waited in the queue, milliseconds.
        on_running: Called when the job is admitted. From then on a drain lets it finish.
        fencing_token: The token of the attempt's claim. Outputs of a later claim are not overwritten.
        control: Kills the program of the run, says whether it has ended, and takes its output.
        secrets: The environment variables whose values are secrets; they are not a part of the job.
        ai_usage: The run's use of models.
        ai_record: The file with the run's exchanges with models; None unless AI_RECORD asks for it. If the
            run has called no model, the file does not exist.
        ai_record_key: The object key of the uploaded record; None if nothing was uploaded.
        code_digest: The SHA-256 of the code zip; empty until the code has been fetched.
        timings: The duration of each phase so far, milliseconds.
        started_at: When the work on the delivery began, `time.perf_counter` seconds.
    """

    job: Job
    number: int
    queue_ms: float = 0
    on_running: Callable[[], None] = lambda: None
    fencing_token: int = 0
    control: RunControl = field(default_factory=RunControl)
    secrets: dict[str, str] | None = field(default=None, repr=False)
    ai_usage: AiUsage = field(default_factory=AiUsage)
    ai_record: Path | None = None
    ai_record_key: str | None = None
    code_digest: str = ""
    timings: Timings = field(default_factory=Timings)
    started_at: float = field(default_factory=time.perf_counter)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the duration of the block to a phase of `timings`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            elapsed_ms = (time.perf_counter() - begun) * 1000
            setattr(self.timings, phase, round(getattr(self.timings, phase) + elapsed_ms, 3))


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that has ended.

    Attributes:
        execution: How it ended.
        start: The state of its container before the run.
        isolation: Its isolation level.
        imports: Whether it got the packages of its code imported, or the reason if not; `OFF` if the job does
            not ask for that.
    """

    execution: Execution
    start: Start
    isolation: Isolation
    imports: ImportsState = ImportsState.OFF
