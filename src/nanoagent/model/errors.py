"""The exceptions that several packages share. Some packages define further ones, such as `ObjectMissing`.

::

    NanoAgentError
    ├── ConfigError               invalid settings; every problem at once
    ├── InvalidCall               invalid arguments of a command; every problem at once
    ├── Rejected                  the job's program could not be started (blame: user)
    │   └── CachedRejection       the same, known from an earlier job
    ├── UnreadableMessage         a message without a readable requestId
    ├── PlatformError             the platform failed; the job is tried again (blame: platform)
    │   ├── BrokerError           SQS
    │   ├── ResultStoreError      Redis
    │   ├── StorageError          S3
    │   ├── SecretsError          Systems Manager, or Secrets Manager
    │   ├── ContainerError        Docker, or a container that died or did not answer
    │   │   ├── ContainerNotMade  no container could be made, so no code has run
    │   │   ├── CrashLoop         the code has just crashed several containers
    │   │   ├── DamagedCode       the code in the cache is damaged, so it could not be put into a container
    │   │   └── ProtocolError     a supervisor has broken the protocol
    │   └── StackError            the embedded services of demo, dev and tests (`dev.local_services`)
    │
    │   These two end this worker's work on a job:
    ├── ReturnToQueue             the job is returned to the queue; its reason says whether that is an attempt
    └── Superseded                another worker has claimed the request; this attempt does not count

Adapters translate the exceptions of other libraries into these exceptions (`raise ... from exc`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanoagent.model.returns import ReturnReason
from nanoagent.model.text import Text, as_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.model.cause import Cause
    from nanoagent.model.result import ErrorType


def one_line(text: str) -> str:
    """Return an untrusted text as one line. Characters that are not printable are escaped.

    Otherwise line breaks would split a log line, and escape sequences would control the reader's terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


class NanoAgentError(Exception):
    """The root of the shared exceptions."""


class ConfigError(NanoAgentError):
    """The settings are invalid.

    Args:
        problems: One sentence for each problem; it begins with the name of the environment variable.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class InvalidCall(NanoAgentError):  # noqa: N818 - named after the thing that is invalid
    """The arguments of a command are invalid.

    Args:
        problems: One sentence for each problem; it begins with the option, the file or the folder.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class Rejected(NanoAgentError):  # noqa: N818 - the usual word: the job is rejected
    """The program of the job cannot be started. Its sender or author is to blame.

    Args:
        error_type: An error type whose blame is `user` in the outcome table.
        message: The fault: the field or the entry of the zip file, its value, and the rule.
        hint: The remedy; None for the default hint of the outcome table.
        cause: The cause on which the remedy is based; None if it is not one of those that have a key.
        stderr: The output of the compiler, for BUILD_FAILED.
        certain: Whether the same code would be rejected again on any machine at any time.
    """

    def __init__(
        self,
        error_type: ErrorType,
        message: Text | str,
        *,
        hint: Text | str | None = None,
        cause: Cause | None = None,
        stderr: Text | str = "",
        certain: bool = True,
    ) -> None:
        super().__init__(str(message))
        self.error_type = error_type
        self.message = as_text(message)
        self.hint = None if hint is None else as_text(hint)
        self.cause = cause
        self.stderr = as_text(stderr)
        self.certain = certain


class CachedRejection(Rejected):
    """The job is rejected because a job with the same code was rejected earlier, and the cause is remembered.

    Args:
        error_type: See `Rejected`.
        message: See `Rejected`. It says that the failure is remembered.
        kind: The cache that has the rejection: `build` or `archive`.
        build_ms: The duration of the failed build, milliseconds.
        rejected: Further arguments of `Rejected`.
    """

    def __init__(
        self, error_type: ErrorType, message: Text, *, kind: str, build_ms: float = 0, **rejected: Any
    ) -> None:
        super().__init__(error_type, message, **rejected)
        self.kind = kind
        self.build_ms = build_ms


class UnreadableMessage(NanoAgentError):  # noqa: N818 - the word of the contract
    """The message has no readable requestId, so that no result can be published."""


class PlatformError(NanoAgentError):
    """The platform failed. Another attempt at the job may succeed.

    The text of the exception is for the log only. It may contain addresses, folder names and error texts of
    other services. Senders must not see these.

    Attributes:
        sender_message: The text for the sender.
    """

    sender_message: Text = Text("the worker failed", "워커에 문제가 생겼습니다")


class BrokerError(PlatformError):
    """An operation of the queue failed."""

    sender_message = Text("the queue failed", "큐에 문제가 생겼습니다")


class ResultStoreError(PlatformError):
    """An operation of the result store failed."""

    sender_message = Text("the result store failed", "결과 저장소에 문제가 생겼습니다")


class StorageError(PlatformError):
    """An operation of the object store failed. A missing object is `storage.base.ObjectMissing` instead."""

    sender_message = Text(
        "the object store, or the worker's cache of it, failed",
        "객체 저장소 또는 워커의 캐시에 문제가 생겼습니다",
    )


class SecretsError(PlatformError):
    """A secret could not be read now. A missing secret is `secrets.base.SecretMissing` instead."""

    sender_message = Text(
        "the service that keeps the secrets of the job failed",
        "작업의 시크릿을 보관하는 서비스에 문제가 생겼습니다",
    )


class ContainerError(PlatformError):
    """A container could not be made, died, or did not answer."""

    sender_message = Text(
        "the job's container could not be made, or failed",
        "작업의 컨테이너를 만들지 못했거나 컨테이너에 문제가 생겼습니다",
    )


class ContainerNotMade(ContainerError):  # noqa: N818 - names what has not happened
    """No container could be made. No code has run, so the code is not the cause."""


class DamagedCode(ContainerError):  # noqa: N818 - names the thing that is damaged
    """The code in the cache is damaged on the disk. No code has run."""


class CrashLoop(ContainerError):  # noqa: N818 - named after the behaviour of the code
    """The code has crashed its containers several times in sequence, and is not run for a while.

    Args:
        crashes: The number and time of the crashes, for the log and the sender.
    """

    def __init__(self, crashes: Text) -> None:
        super().__init__(f"the code crashes its containers ({crashes})")
        self.sender_message = Text("{message} ({crashes})", "{message} ({crashes})").format(
            message=ContainerError.sender_message, crashes=crashes
        )


class ProtocolError(ContainerError):
    """A supervisor sent bytes that the protocol does not allow."""


class ReturnToQueue(NanoAgentError):  # noqa: N818 - names what happens to the job
    """The job must be returned to the queue, for example because there is no room.

    Args:
        detail: The reason as a sentence, for the log.
        delay_s: The delay until the job can be received again, seconds; None: the delay of the reason.
        reason: The reason. Only the reason decides whether the return counts as an attempt (`returns.RULES`).

    Attributes:
        sender_message: The text for the sender if the return counts, and this was the last attempt.
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


class Superseded(NanoAgentError):  # noqa: N818 - a state of the attempt, and not a failure
    """Another worker has claimed the request after this one. Redis or the object store has shown this."""
