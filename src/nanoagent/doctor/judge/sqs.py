"""Findings about the queue and its dead-letter queue: settings and permissions.

Permissions are tested with an invalid receipt handle, and with a request for more messages than SQS allows.
AWS does not document whether it checks the arguments or the permission first. So if AWS complains about the
arguments, the permission may still be missing.

Source: Amazon SQS API Reference, "DeleteMessage" and "ReceiveMessage".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nanoagent.doctor.facts import redrive_policy
from nanoagent.doctor.finding import Area, Finding, note, problem, unknown, warning
from nanoagent.doctor.judge.aws import POLICY, denied_action, failure, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nanoagent.config import Settings
    from nanoagent.doctor.facts import Answer

_NO_QUEUE: Final = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
_INVALID_HANDLE: Final = frozenset({"ReceiptHandleIsInvalid", "InvalidParameterValue"})
_TOO_MANY_MESSAGES: Final = frozenset({"InvalidParameterValue", "ReadCountOutOfRange"})
_MIN_RETENTION_S: Final = 3600


def judge(settings: Settings, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    """Return all findings about the queue.

    Args:
        settings: The worker's settings.
        answers: Name of the request → the answer; see `gather.aws.sqs`. No finding for a missing answer.
    """
    queue = f"the queue {_name(settings.sqs_queue_url)}"
    attributes = answers["attributes"]
    if attributes.code is None:
        yield Finding(Area.SQS, f"{queue} answers")
        yield from _queue_settings(settings, queue, attributes.data)
    elif attributes.code in _NO_QUEUE:
        yield problem(
            Area.SQS,
            f"{queue} does not exist in {settings.aws_region}, or the worker's role has no access to it",
            "check SQS_QUEUE_URL, AWS_REGION and the role",
        )
        return
    elif denied_action(attributes) is not None:
        yield refusal(Area.SQS, "sqs:GetQueueAttributes", queue, attributes)
    else:
        yield failure(Area.SQS, queue, attributes)
        return
    yield from _changing(queue, answers)
    if "receive" in answers:
        yield _receiving(queue, answers["receive"])
    yield from _dead_letters(settings, answers)


def _changing(queue: str, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    for name, action in (("delete", "sqs:DeleteMessage"), ("change", "sqs:ChangeMessageVisibility")):
        if name not in answers:
            continue
        answer = answers[name]
        if denied_action(answer) is not None:
            yield refusal(Area.SQS, action, queue, answer)
        elif answer.code is None or answer.code in _INVALID_HANDLE:
            yield Finding(Area.SQS, f"{action} is not refused (tested with an invalid receipt handle)")
        else:
            yield failure(Area.SQS, f"{action} on {queue}", answer)


def _receiving(queue: str, answer: Answer) -> Finding:
    """Judge the answer to a request for eleven messages, which SQS refuses.

    A valid request would receive messages.
    """
    if denied_action(answer) is not None:
        return refusal(Area.SQS, "sqs:ReceiveMessage", queue, answer)
    if answer.code in _TOO_MANY_MESSAGES:
        return unknown(
            Area.SQS,
            "sqs:ReceiveMessage was not refused, but receiving a message was not tested: it would count as a "
            "receipt",
            "if it is refused, the worker's log has the event `queue not readable`",
        )
    return failure(Area.SQS, f"sqs:ReceiveMessage on {queue}", answer)


def _queue_settings(settings: Settings, queue: str, data: Mapping[str, object]) -> Iterator[Finding]:
    attributes = data.get("Attributes") if isinstance(data, dict) else None
    if not isinstance(attributes, dict):
        return
    yield from _redrive(settings, queue, attributes)
    retention_s = str(attributes.get("MessageRetentionPeriod", ""))
    if retention_s.isdecimal() and int(retention_s) < _MIN_RETENTION_S:
        yield warning(
            Area.SQS,
            f"{queue} deletes messages after {retention_s} s",
            "set MessageRetentionPeriod to a day or more",
        )
    if attributes.get("KmsMasterKeyId"):
        yield note(
            Area.SQS,
            f"{queue} is encrypted with a key of KMS",
            "allow kms:Decrypt and kms:GenerateDataKey for the worker's role, on that key and on the key of "
            "the dead-letter queue",
        )


def _redrive(settings: Settings, queue: str, attributes: Mapping[str, object]) -> Iterator[Finding]:
    receives = str(redrive_policy(attributes).get("maxReceiveCount"))
    if receives.isdecimal():
        if int(receives) < settings.min_max_receive_count:
            yield warning(
                Area.SQS,
                _few_receives(settings, queue, receives),
                f"set maxReceiveCount in its redrive policy to {settings.min_max_receive_count} or more",
            )
    elif settings.sqs_dlq_url is None:
        yield warning(
            Area.SQS,
            f"{queue} has no dead-letter queue: a job that is given up is only logged",
            "set a redrive policy for the queue, or SQS_DLQ_URL",
        )


def _few_receives(settings: Settings, queue: str, receives: str) -> str:
    """Describe the effect of a small maxReceiveCount.

    On a standard queue, the worker replaces a message by a copy, which has zero receipts at first. On a FIFO
    queue it cannot make a copy.
    """
    found = (
        f"{queue} dead-letters a message after {receives} receipts, including receipts that were no attempts"
    )
    if settings.sqs_queue_url.endswith(".fifo"):
        return f"{found}: a job behind a failing job of the same group may be given up without an attempt"
    return f"{found}: the worker must often replace messages by copies"


def _dead_letters(settings: Settings, answers: Mapping[str, Answer]) -> Iterator[Finding]:
    if "dead letters" not in answers:
        return
    answer = answers["dead letters"]
    queue = "the dead-letter queue" + (f" {_name(settings.sqs_dlq_url)}" if settings.sqs_dlq_url else "")
    if answer.code in _NO_QUEUE:
        yield problem(
            Area.SQS,
            f"{queue} does not exist, or the worker's role has no access to it",
            "check SQS_DLQ_URL, or the queue's redrive policy",
        )
    elif denied_action(answer) is not None:
        if settings.sqs_dlq_url is None:  # the worker itself has to look up the queue's URL
            yield refusal(Area.SQS, "sqs:GetQueueUrl", queue, answer)
        else:
            yield unknown(
                Area.SQS,
                f"whether {queue} exists: sqs:GetQueueUrl is not allowed, and the worker does not need it",
            )
    elif answer.code is None:
        yield Finding(Area.SQS, f"{queue} exists")
    else:
        yield failure(Area.SQS, queue, answer)
    yield unknown(
        Area.SQS,
        f"sqs:SendMessage to {queue} was not tested: the test would send a message",
        f"allow sqs:SendMessage on it, and on the queue itself unless that is FIFO ({POLICY})",
    )


def _name(url: str | None) -> str:
    return (url or "").rstrip("/").rpartition("/")[2]
