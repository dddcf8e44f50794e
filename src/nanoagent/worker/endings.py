"""The ways in which the work on a delivery ends, as values.

`error_type` of an ending names its row in `result.OUTCOMES`. The row says what happens to the message.
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
    """The request has a result. It has just been published, for the first time or again.

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
        """Return the ending of a delivery whose request has that result."""
        return cls(result.error_type, result.error_message, result.attempt)

    @classmethod
    def by_document(cls, document: bytes) -> Self:
        """Return the ending for a stored result. A result that cannot be read counts as a success."""
        try:
            return cls.by(results.decode(document))
        except msgspec.DecodeError:
            return cls(None)


@dataclass(frozen=True, slots=True)
class Spooled:
    """The result is in the spool, because Redis did not store it before this worker had to stop."""

    error_type: ClassVar = ErrorType.INTERRUPTED
    detail: ClassVar = "its result waits in the worker's spool"


@dataclass(frozen=True, slots=True)
class Returned:
    """The job is returned to the queue. This was not an attempt.

    Attributes:
        reason: The reason.
        detail: The reason as a sentence, for the log.
        delay_s: The delay, seconds; None for the delay that `settlement.DELAYS` has for the reason.
    """

    reason: ReturnReason
    detail: str
    delay_s: float | None = None
    error_type: ClassVar = ErrorType.INTERRUPTED


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed because of the platform.

    Attributes:
        detail: The failure as a sentence, for the log. It may contain internal names.
        sender_message: The failure as a sentence for the sender.
        reason: The reason, if the failure is a return that counts as an attempt; None if it is an error.
    """

    detail: str
    sender_message: Text
    reason: ReturnReason | None = None
    error_type: ClassVar = ErrorType.PLATFORM

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The job has no attempts left, or the queue will not deliver its message again.

    Attributes:
        sender_message: The cause as a sentence, for the sender and the log.
    """

    sender_message: Text
    error_type: ClassVar = ErrorType.PLATFORM

    def __str__(self) -> str:
        return str(self.sender_message)


@dataclass(frozen=True, slots=True)
class Unpublished:
    """The job was given up, but its result could not be published. The sender does not know yet."""

    error_type: ClassVar = ErrorType.INTERRUPTED
    detail: ClassVar = "the job was given up, and its result is not published yet"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The message has no readable requestId, so no sender can be notified.

    Attributes:
        problem: The fault of the message, as a sentence.
    """

    problem: str
    error_type: ClassVar = ErrorType.UNREADABLE


Ending = Answered | Spooled | Returned | Failed | Exhausted | Unpublished | Unreadable


def of_error(exc: Exception) -> Returned | Failed:
    """Return the ending of an attempt that raised an exception, and log an internal error."""
    match exc:
        case ReturnToQueue() if returns.counts(exc.reason):
            return Failed(str(exc), exc.sender_message, exc.reason)
        case ReturnToQueue():
            return Returned(exc.reason, str(exc), exc.delay_s)
        case Superseded():
            return Returned(ReturnReason.CLAIM_LOST, f"its claim is lost: {exc}")
        case PlatformError():
            return Failed(str(exc), exc.sender_message)
        case _:
            log.error("internal error", operation="run a job", exc_info=exc)
            return Failed(f"an error inside the worker: {type(exc).__name__}", PlatformError.sender_message)
