"""Runs a program once in an acquired container, and measures it with the counters of the kernel."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.units import MIB
from nanoagent.container import judgment, output_masking
from nanoagent.container.cgroup import MemoryUse, RunMeter
from nanoagent.container.charges import LEFTOVER_BYTES
from nanoagent.model.errors import ContainerError, ProtocolError
from nanoagent.model.result import KILLED, NOT_STARTED, ErrorType
from nanoagent.supervisor import session, stream
from nanoagent.supervisor.exit_status import exit_code_of
from nanoagent.supervisor.output import Collected
from nanoagent.supervisor.wire import ExitFlag, LiveMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from nanoagent.container.base import RunningContainer
    from nanoagent.container.cgroup import ControlGroup
    from nanoagent.container.pool import AcquiredContainer
    from nanoagent.model.job import Runtime
    from nanoagent.model.text import Text
    from nanoagent.secrets.masking import Mask, PositionedMask
    from nanoagent.supervisor.session import OnOutput
    from nanoagent.supervisor.wire import RunRequest

log = structlog.get_logger(__name__)

# A sample takes about 20 µs. If a program ends before the first sample, only the kernel's peak is known.
_SAMPLE_S: Final = 0.05
# The memory that the supervisor needs after a run, for file names and captured output. Measurements show much
# less.
_SUPERVISOR_BYTES: Final = 16 * MIB


@dataclass(slots=True)
class RunControl:
    """Cancels a run, and follows its output.

    Attributes:
        live: Whether the output is wanted while the program runs, and how. `follow` changes it.
        on_output: Called with each piece of output while the program runs; None if it was never wanted.
        kill: Ends the program; None while the program does not run.
        switch: Lets the supervisor send output or stop sending it; None while the program does not run.
        has_ended: Whether the program has ended, so that it is too late to cancel it.
        mask: Hides secrets in the output; None if the job has no secrets.
    """

    live: LiveMode = LiveMode.OFF
    on_output: OnOutput | None = None
    kill: Callable[[], None] | None = None
    switch: Callable[[bool], None] | None = None
    has_ended: bool = False
    mask: Mask | None = None
    _live_mask: PositionedMask | None = field(default=None, init=False)

    def hide_secrets(self, mask: Mask) -> None:
        """Hide the values of secrets in all output of the run."""
        self.mask = mask

    def finish_output(self) -> None:
        """Pass on the output that was held back, because it could be the beginning of a secret."""
        if self._live_mask is not None:
            self._live_mask.flush()

    def follow(self, on_output: OnOutput) -> None:
        """Let the supervisor send the output within its limit, now or when the program starts."""
        self.on_output = on_output
        self.live = LiveMode.LIMITED
        if self.switch is not None:
            self.switch(True)

    def unfollow(self) -> None:
        """Let the supervisor stop sending the output. Pieces that are on their way still arrive."""
        self.live = LiveMode.OFF
        if self.switch is not None:
            self.switch(False)

    def take_output(self, stream: bytes, position: int, output: bytes) -> None:
        """Pass a piece of output on.

        Raises:
            ProtocolError: No output was requested.
        """
        if self.on_output is None:
            raise ProtocolError("the supervisor sent output that was not requested")
        if self.mask is None:
            self.on_output(stream, position, output)
            return
        if self._live_mask is None:
            self._live_mask = self.mask.positioned(self.on_output)
        self._live_mask(stream, position, output)


@dataclass(frozen=True, slots=True)
class Execution:
    """The outcome of one run.

    Attributes:
        error_type: The error type; None if the run succeeded.
        message: The message for the result; None if the run succeeded.
        exit_code: The exit code for the result.
        wall_ms: The run time of the program, milliseconds.
        use: The run's use of memory and processes; None if the program was not started, or if the control
            group is not visible or was removed.
        collected: The output of the run.
        flags: The facts of the supervisor about its end.
    """

    error_type: ErrorType | None
    message: Text | None
    exit_code: int
    wall_ms: float
    use: MemoryUse | None
    collected: Collected
    flags: ExitFlag = ExitFlag(0)  # noqa: RUF009 - an immutable value


async def execute(
    acquired: AcquiredContainer,
    request: RunRequest,
    staging: Path,
    control: RunControl | None = None,
    network: AbstractAsyncContextManager[None] | None = None,
    *,
    language: Runtime | None = None,
) -> Execution:
    """Run a program once. Mark the container as clean if it may serve another run.

    Args:
        acquired: A container that has the code.
        request: The run.
        staging: A folder for the output files; made if there are any.
        control: Can cancel the run and follow its output while the program runs.
        network: Entered before the program starts. Left after all processes of the program have ended.
        language: The language of the program; None for a program of the image, such as a compiler.

    Raises:
        ContainerError: The container failed, so the outcome of the program is unknown.
    """
    container, limits = acquired.container, acquired.container.spec.limits
    await container.session.ready()
    meter = _new_meter(container)
    control = control or RunControl()
    try:
        async with network or nullcontext():
            await container.session.start(request)
            log.debug("run begins", command=request.arguments[0])
            with _sampled(meter), _cancellable(container, control):
                if control.live is not request.live:  # it changed while the request was sent
                    container.session.follow(control.live is LiveMode.LIMITED)
                report = await container.session.wait_exit(request, control.take_output)
    except session.Overdue:
        return _overdue(request, meter)
    except stream.Disconnected:
        use = _last_reading(meter)
        if (cause := judgment.container_death(request, use, limits)) is None:
            raise
        return Execution(*cause, KILLED, 0, use, Collected())
    use = _last_reading(meter)
    if ExitFlag.NOT_STARTED in report.flags:
        return Execution(*judgment.not_started(request, report), NOT_STARTED, 0, None, Collected())
    if ExitFlag.ORPHANED in report.flags and (use is None or not use.oom_kills):
        raise ContainerError("the container's interpreter ended during the run, and with it the run")
    had_memory = _ensure_memory(container.group, meter)
    collected = await container.session.collect(request, report, staging)
    if control.mask is not None:
        output_masking.hide_secrets(collected, control.mask)
    error_type, message = judgment.judge(request, report, use, collected, language, limits=limits)
    use = _without_growth(container, meter, use, report.flags)
    may_reuse = collected.clean and had_memory and judgment.allows_reuse(error_type)
    acquired.clean = may_reuse and _has_freed_memory(container)
    exit_code, wall_ms = exit_code_of(report.wait_status), report.wall_us / 1000
    return Execution(error_type, message, exit_code, wall_ms, use, collected, report.flags)


def _overdue(request: RunRequest, meter: RunMeter | None) -> Execution:
    """Return the outcome of a run that the supervisor could not end. The caller removes the container."""
    use = _last_reading(meter)
    error_type, message = judgment.overdue(request, use)
    wall_ms = float(request.timeout_ms + request.grace_ms) if error_type is ErrorType.TIMEOUT else 0
    return Execution(error_type, message, KILLED, wall_ms, use, Collected())


# --- memory


def _new_meter(container: RunningContainer) -> RunMeter | None:
    if container.group is None:
        return None
    try:
        return RunMeter(container.group, container.base_bytes)
    except OSError as exc:
        raise ContainerError("the container died before the run") from exc


def _last_reading(meter: RunMeter | None) -> MemoryUse | None:
    try:
        return meter.read() if meter is not None else None
    except OSError:  # the control group was removed with its container
        return None


def _without_growth(
    container: RunningContainer, meter: RunMeter | None, use: MemoryUse | None, flags: ExitFlag
) -> MemoryUse | None:
    """Return the use of the run without the memory of a sandbox that was created during the run.

    The size of a sandbox is measured after runs that began with all sandboxes, such as the first run.
    """
    if meter is None or use is None:
        return use
    try:
        if meter.began_complete:
            container.sandbox_bytes = max(container.sandbox_bytes, meter.freed_bytes())
        if ExitFlag.CREATING not in flags:
            return use
        return meter.exclude_growth(use, container.sandbox_bytes)
    except OSError:  # the control group was removed with its container
        return use


def _ensure_memory(group: ControlGroup | None, meter: RunMeter | None) -> bool:
    """Raise the memory limit if the files of the run leave too little memory for the supervisor to send them.

    The limit is not lowered again, because such a container is not used again.

    Returns:
        Whether the supervisor had enough memory without a higher limit.
    """
    if group is None or meter is None:
        return True
    try:
        limit = group.memory_limit()
        if meter.held_bytes + _SUPERVISOR_BYTES <= limit:
            return True
        group.set_memory_limit(limit + _SUPERVISOR_BYTES)
    except OSError:  # not permitted, or the control group was removed; the supervisor sends as much as it can
        return False
    return False


def _has_freed_memory(container: RunningContainer) -> bool:
    """Whether the container holds at most `LEFTOVER_BYTES` more memory than just after it was bound.

    The kernel frees some memory late, for example files and pipes whose descriptors were sent through sockets
    and not received. Until then, the next run would have less memory.
    """
    if container.group is None:
        return True
    most = container.base_bytes + LEFTOVER_BYTES
    try:
        # The usage with the page cache is faster to read, and in most cases it is already small enough.
        if (held_bytes := container.group.usage_bytes()) > most:
            held_bytes = container.group.held_bytes()
    except OSError:
        return False
    # The next sandbox may not be complete yet, so the memory may still rise to that after the binding.
    container.held_bytes = max(held_bytes, container.base_bytes)
    return held_bytes <= most


@contextmanager
def _cancellable(container: RunningContainer, control: RunControl) -> Iterator[None]:
    control.kill = container.session.kill
    control.switch = container.session.follow
    try:
        yield
        control.has_ended = True
    finally:
        control.kill = control.switch = None
        if control.mask is not None:
            control.finish_output()


@contextmanager
def _sampled(meter: RunMeter | None) -> Iterator[None]:
    """Sample the meter until the block ends."""
    if meter is None:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def again() -> None:
        nonlocal timer
        timer = loop.call_later(_SAMPLE_S, sample)

    def sample() -> None:
        again()  # first, so that the next sample follows even if this one fails
        meter.sample()

    again()
    try:
        yield
    finally:
        timer.cancel()
