"""Every exception this package raises on purpose.

::

    NanoAgentError
    ├── ConfigError            the settings are wrong; every problem at once
    ├── InvalidCall            a command's arguments are invalid; every problem at once
    ├── Rejected               the user's fault, found before the program could start (blame: user)
    │   └── Remembered         it was found with another job, a moment ago
    ├── UnreadableMessage      a message without a requestId: nobody can be told
    ├── PlatformError          our side's fault; the job is tried again (blame: platform)
    │   ├── BrokerError        SQS
    │   ├── ResultStoreError          Redis
    │   ├── StorageError       S3
    │   ├── ContainerError     Docker, or a container that died or misbehaved
    │   │   ├── ContainerNotMade  by no fault of what it was to be for
    │   │   ├── KnownToCrash   what was to be run has just taken several down
    │   │   └── ProtocolError  bytes from a supervisor that break the protocol
    │   └── StackError         the embedded services of demo, dev and tests (see `local`)
    │                          Nothing failed, but the work on the job ends:
    ├── ReturnToQueue          the job goes back to the queue; the reason says if that is an attempt
    └── Superseded             another worker has the request; nothing of this attempt counts

Vendors' exceptions are translated at the adapters, `from exc`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanoagent.model.returns import ReturnReason
from nanoagent.model.text import Text, as_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.model.result import ErrorType


def one_line(text: str) -> str:
    """A stranger's text as a sentence for a person may have it: what cannot be printed is escaped.

    Line breaks would make two log lines of one, and escape sequences are orders to a terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


class NanoAgentError(Exception):
    """The root of the tree above."""


class ConfigError(NanoAgentError):
    """The settings cannot be used.

    Args:
        problems: One sentence each, starting with the environment variable's name.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class InvalidCall(NanoAgentError):  # noqa: N818 - names the thing that is wrong
    """A command's arguments are invalid.

    Args:
        problems: One sentence each, starting with the option, file or folder.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class Rejected(NanoAgentError):  # noqa: N818 - the field's word for it; the job is rejected, nothing erred
    """The job cannot run, and that is the fault of whoever sent it.

    Args:
        error_type: One of the outcome table's user faults.
        message: What is wrong: the field or entry, the value, the rule.
        hint: What to do about it, or None for the table's own hint.
        stderr: What a compiler said, for BUILD_FAILED.
        certain: Whether the same code would be rejected again, whatever else the machine does.
    """

    def __init__(
        self,
        error_type: ErrorType,
        message: Text | str,
        *,
        hint: Text | str | None = None,
        stderr: Text | str = "",
        certain: bool = True,
    ) -> None:
        super().__init__(str(message))
        self.error_type = error_type
        self.message = as_text(message)
        self.hint = None if hint is None else as_text(hint)
        self.stderr = as_text(stderr)
        self.certain = certain


class Remembered(Rejected):
    """What another job of the same code was rejected for, without another look.

    Args:
        error_type: As `Rejected`.
        message: Likewise; it says that it is remembered.
        reason: Whose memory it is: `build` or `archive`.
        build_ms: How long the build took that failed, milliseconds.
        rejected: Further arguments of `Rejected`.
    """

    def __init__(
        self, error_type: ErrorType, message: Text, *, reason: str, build_ms: float = 0, **rejected: Any
    ) -> None:
        super().__init__(error_type, message, **rejected)
        self.reason = reason
        self.build_ms = build_ms


class UnreadableMessage(NanoAgentError):  # noqa: N818 - names the thing, as the contract does
    """A message from which no requestId can be read, so that no result can be addressed."""


class PlatformError(NanoAgentError):
    """Something of ours failed; trying the job again may help.

    Its text is for the log: it names addresses and folders, and quotes services. Senders must not see these.

    Attributes:
        sender_message: What the sender is told instead.
    """

    sender_message: Text = Text("the worker failed", "워커에 문제가 생겼습니다")


class BrokerError(PlatformError):
    """The queue did not do what was asked."""

    sender_message = Text("the queue failed", "큐에 문제가 생겼습니다")


class ResultStoreError(PlatformError):
    """The result could not be stored, or the store could not be asked."""

    sender_message = Text("the result store failed", "결과 저장소에 문제가 생겼습니다")


class StorageError(PlatformError):
    """The object store failed (not: the object is missing, see `storage.base.ObjectMissing`)."""

    sender_message = Text(
        "the object store, or the worker's cache of it, failed",
        "객체 저장소 또는 워커의 캐시에 문제가 생겼습니다",
    )


class ContainerError(PlatformError):
    """A container could not be made, or died, or did not answer."""

    sender_message = Text(
        "the job's container could not be made, or failed",
        "작업의 컨테이너를 만들지 못했거나 컨테이너에 문제가 생겼습니다",
    )


class ContainerNotMade(ContainerError):  # noqa: N818 - says what did not happen
    """No container could be had; nothing has been tried in one."""


class KnownToCrash(ContainerError):  # noqa: N818 - said of the code
    """Code that has taken down its containers again and again is not given another for a while.

    Args:
        memory: What is remembered, for the sender as well.
    """

    def __init__(self, memory: Text) -> None:
        super().__init__(f"the code takes its containers down ({memory})")
        self.sender_message = Text("{message} ({memory})", "{message} ({memory})").format(
            message=ContainerError.sender_message, memory=memory
        )


class ProtocolError(ContainerError):
    """A supervisor sent bytes that the protocol does not allow."""


class ReturnToQueue(NanoAgentError):  # noqa: N818 - names what happens to the job
    """The job goes back to the queue, for lack of room for example.

    Args:
        detail: Why, for the log.
        delay_s: The delay until it can be received again, seconds; None: the delay of the reason.
        reason: Why. It decides alone whether this counts as an attempt (`returns.RULES`).

    Attributes:
        sender_message: What the sender is told if the job ends by it.
    """

    sender_message: Text = Text(
        "no worker could run jobs of this runtime",
        "이 런타임의 작업을 실행할 수 있는 워커가 없었습니다",
    )

    def __init__(
        self, detail: str, delay_s: float | None = None, *, reason: ReturnReason = ReturnReason.NO_ROOM
    ) -> None:
        super().__init__(detail)
        self.delay_s = delay_s
        self.reason = reason


class Superseded(NanoAgentError):  # noqa: N818 - a fact about the attempt, not a failure
    """A store has shown that another worker has claimed the request since."""
