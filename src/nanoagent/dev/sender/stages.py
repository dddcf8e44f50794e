"""The stages of sending a job, the exit codes, and the texts that depend on the stage."""

from __future__ import annotations

import shlex
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

from nanoagent.dev.sender import dev

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.model.errors import PlatformError


class Exit(IntEnum):
    """Exit codes of the commands for senders; Ctrl-C ends with 130."""

    SUCCESS = 0  # the job succeeded; or it was sent with `--wait 0`; or the cancellation was sent
    NOT_SUCCESSFUL = 1  # the job ended with another status, or before the cancellation
    INVALID_CALL = 2  # arguments, code or settings are invalid; nothing was sent
    SERVICE_FAILED = 3  # Redis, S3 or SQS failed
    NO_RESULT = 4  # no result exists yet; or there is no such job or function


class Stage(StrEnum):
    """The progress of sending a job."""

    UNKNOWN = "unknown"  # for `result` and `cancel`, until a result or a worker shows that the job was sent
    NOT_SENT = "not sent"
    SENDING = "maybe sent"
    SENT = "sent"


def after_interruption(stage: Stage, request_id: str, env_file: Path, since: str | None = None) -> str:
    """Return what has happened to a job whose sender stops here, and the commands for this job.

    `since` is that of `next_commands`.
    """
    if stage is Stage.NOT_SENT:
        return "Nothing was sent."
    sent = "The job may have been sent" if stage is Stage.SENDING else "The job was sent and continues"
    return f"{sent}.\n{next_commands(request_id, env_file, since)}"


def next_commands(request_id: str, env_file: Path, since: str | None = None) -> str:
    """Return the commands for a job that was sent.

    Args:
        request_id: The request ID of the job.
        env_file: The value of `--env-file`.
        since: The position after which to follow the job; empty for the beginning, None for no such command.
    """
    settings = settings_option(env_file)
    position = f" --since {since}" if since else ""
    following = f"  to follow it:  nanoagent logs {request_id} --follow{position}{settings}\n"
    return (
        f"{'' if since is None else following}"
        f"  its result:    nanoagent result {request_id}{settings}\n"
        f"  to cancel it:  nanoagent cancel {request_id}{settings}"
    )


def settings_option(env_file: Path) -> str:
    """Return the option by which a proposed command finds the same worker."""
    return "" if env_file == dev.DEFAULT else f" --env-file {shlex.quote(str(env_file))}"


def no_result_within(wait_s: float) -> str:
    """Return the error for a wait that ended without a result."""
    return f"no result within {wait_s:g} s; check that a worker runs on this queue"


def service_failed(error: PlatformError, settings_file: Path) -> str:
    """Return the error text of a failed service, without secrets."""
    from nanoagent.telemetry import logs  # noqa: PLC0415 - structlog is slow to import, and rarely needed here

    return logs.without_secrets(f"{error}{dev.may_have_ended(settings_file)}")
