"""The ways in which the work on a delivery ends, as values.

Each class has the error type of its row in `result.OUTCOMES`. That row says what happens to the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import msgspec
import structlog

from nanoagent.model import result as results
from nanoagent.model import returns
from nanoagent.model.errors import PlatformError, ReturnToQueue, Superseded
from nanoagent.model.result import ErrorType
from nanoagent.model.returns import ReturnReason

if TYPE_CHECKING:
    from typing import Self

    from nanoagent.model.result import Result
    from nanoagent.model.text import Text

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """The request has a result, which has just been published, or published again.

    Attributes:
        error_type: How the job ended; None for success.
        message: The result's error message.
        attempts: How many attempts were made.
    """

    error_type: ErrorType | None
    message: str | None = None
    attempts: int = 0

    @classmethod
    def by(cls, result: Result) -> Self:
        """The ending of a delivery whose request has that result."""
        return cls(result.error_type, result.error_message, result.attempt)

    @classmethod
    def by_document(cls, document: bytes) -> Self:
        """The same for a stored result; one that another program has written counts as a success."""
        try:
            return cls.by(results.decode(document))
        except msgspec.DecodeError:
            return cls(None)


@dataclass(frozen=True, slots=True)
class Kept:
    """The result lies on this worker's disk: Redis has not taken it, and the worker could not wait."""

    error_type: ClassVar = ErrorType.INTERRUPTED
    detail: ClassVar = "its result waits on its worker's disk"


@dataclass(frozen=True, slots=True)
class Returned:
    """The job goes back to the queue. This was no attempt.

    Attributes:
        reason: Why.
        detail: The same for the log.
        delay_s: The delay, seconds; None: the delay of the reason.
    """

    reason: ReturnReason
    detail: str
    delay_s: float | None = None
    error_type: ClassVar = ErrorType.INTERRUPTED


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed, and that is the platform's fault.

    Attributes:
        detail: What failed, for the log.
        told: The same for the sender.
        reason: Why the job goes back; None: an error.
    """

    detail: str
    told: Text
    reason: ReturnReason | None = None
    error_type: ClassVar = ErrorType.PLATFORM

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The job has no attempts left, or its message no receipts. Nothing was tried.

    Attributes:
        told: Which of the two, for the sender and the log.
    """

    told: Text
    error_type: ClassVar = ErrorType.PLATFORM

    def __str__(self) -> str:
        return str(self.told)


@dataclass(frozen=True, slots=True)
class Untold:
    """The job was given up, and the result store did not take its result."""

    error_type: ClassVar = ErrorType.INTERRUPTED
    detail: ClassVar = "it was given up, and its sender not told"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The message names no request, so that no sender can be told.

    Attributes:
        problem: What is wrong with it.
    """

    problem: str
    error_type: ClassVar = ErrorType.UNREADABLE


Ending = Answered | Kept | Returned | Failed | Exhausted | Untold | Unreadable


def of_error(exc: Exception) -> Returned | Failed:
    """The ending of an attempt that raised an exception."""
    match exc:
        case ReturnToQueue() if returns.counts(exc.reason):
            return Failed(str(exc), exc.told, exc.reason)
        case ReturnToQueue():
            return Returned(exc.reason, str(exc), exc.delay_s)
        case Superseded():
            return Returned(ReturnReason.CLAIM_LOST, f"its claim is lost: {exc}")
        case PlatformError():
            return Failed(str(exc), exc.told)
        case _:
            log.error("internal error", operation="run a job", exc_info=exc)
            return Failed(f"an error inside the worker: {type(exc).__name__}", PlatformError.told)
