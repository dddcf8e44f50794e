"""Converts SQS messages to deliveries, and builds the requests that send messages.

The functions of this module make no calls.
"""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Any, Final

from nanoagent.broker.base import Delivery
from nanoagent.model.message import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_RECEIVE_COUNT: Final = 2**31 - 1
"""More receipts than a message can have within the 14 days for which SQS keeps it."""

# Quotas of SQS:
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-quotas.html
_MAX_ATTRIBUTES: Final = 10
_MAX_SEND_DELAY_S: Final = 900

_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")
_FORBIDDEN_CHARACTERS: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TEXT_MAX_BYTES: Final = 256
# The attribute of a copy with the time at which the original message was sent, Unix epoch milliseconds.
_FIRST_SENT: Final = "firstSentAt"


def delivery_of(message: Mapping[str, Any], *, is_fifo: bool = False) -> Delivery:
    """Return the delivery for a received message.

    Missing or invalid counts and times get default values. This function must not raise. Otherwise the other
    messages of the batch would stay hidden from all workers until their visibility timeouts end.
    """
    now = time.time()
    attributes = message.get("Attributes", {})
    first_sent = message.get("MessageAttributes", {}).get(_FIRST_SENT, {}).get("StringValue")
    return Delivery(
        message_id=message["MessageId"],
        receipt=message["ReceiptHandle"],
        body=message.get("Body", ""),
        receive_count=bounded_int(1, attributes.get("ApproximateReceiveCount"), MAX_RECEIVE_COUNT) or 1,
        sent_at=min(_seconds(attributes.get("SentTimestamp"), now), _seconds(first_sent, now)),
        received_at=now,
        group_id=attributes.get("MessageGroupId"),
        in_order=is_fifo and "MessageGroupId" in attributes,
    )


def bounded_int(least: int, text: object, most: int) -> int | None:
    """Return the integer in the text, limited to `least` and `most`; None if the text is not an integer."""
    found = _INTEGER.fullmatch(str(text))
    return min(max(int(found[0]), least), most) if found else None


def _seconds(milliseconds: object, now: float) -> float:
    """Return a timestamp of SQS in seconds. A missing, invalid or future timestamp becomes `now`."""
    return min(now, (bounded_int(0, milliseconds, 1 << 52) or 0) / 1000) or now


def whole_seconds(delay_s: float) -> int:
    """Return a delay in whole seconds, rounded up; a negative delay becomes 0."""
    return math.ceil(max(0.0, delay_s))


def copy_request(
    queue_url: str, delivery: Delivery, attributes: Mapping[str, Any], delay_s: float
) -> dict[str, Any]:
    """Return the SendMessage request for a copy of a message in its own queue.

    Args:
        queue_url: The queue's URL.
        delivery: The message's last delivery.
        attributes: The message's own attributes.
        delay_s: The time before the copy can be received, seconds; at most 15 minutes are used.
    """
    first_sent = {_FIRST_SENT: _text(str(int(delivery.sent_at * 1000)))}
    request: dict[str, Any] = {
        "QueueUrl": queue_url,
        "MessageBody": delivery.body,
        "MessageAttributes": _first_that_fits(delivery.body, ({**attributes, **first_sent}, attributes)),
        "DelaySeconds": min(whole_seconds(delay_s), _MAX_SEND_DELAY_S),
    }
    if delivery.group_id is not None:
        request["MessageGroupId"] = delivery.group_id
    return request


def dead_letter_request(
    dlq_url: str, delivery: Delivery, attributes: Mapping[str, Any], details: Mapping[str, str]
) -> dict[str, Any]:
    """Return the SendMessage request that puts a message into a dead-letter queue.

    If all attributes together exceed SQS's limits, only the details are sent. If these exceed the limits too,
    no attributes are sent.

    Args:
        dlq_url: The dead-letter queue's URL.
        delivery: The message's delivery.
        attributes: The message's own attributes.
        details: The attributes that the worker adds, by name.
    """
    added = {name: _text(_sendable(value)) for name, value in details.items()}
    request: dict[str, Any] = {
        "QueueUrl": dlq_url,
        "MessageBody": delivery.body,
        "MessageAttributes": _first_that_fits(delivery.body, ({**attributes, **added}, added)),
    }
    if dlq_url.endswith(".fifo"):
        request["MessageGroupId"] = delivery.group_id or delivery.message_id
        request["MessageDeduplicationId"] = delivery.message_id
    return request


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


def _sendable(text: str) -> str:
    """Return the text in a form that SQS accepts in an attribute.

    It has no control characters, is not empty, and has at most 256 bytes.
    """
    cleaned = _FORBIDDEN_CHARACTERS.sub(" ", text).strip() or "unknown"
    return cleaned.encode()[:_TEXT_MAX_BYTES].decode(errors="ignore")


def _first_that_fits(body: str, choices: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the first set of attributes that SQS accepts with this body; an empty set if it accepts none."""
    room_bytes = MAX_MESSAGE_BYTES - len(body.encode())
    for attributes in choices:
        if len(attributes) <= _MAX_ATTRIBUTES and _size_bytes(attributes) <= room_bytes:
            return attributes
    return {}


def _size_bytes(attributes: Mapping[str, Any]) -> int:
    """Return the part of a message's size that its attributes use: name, type and value of each."""
    return sum(
        len(name.encode())
        + len(value["DataType"])
        + len(value.get("StringValue", "").encode())
        + len(value.get("BinaryValue", b""))
        for name, value in attributes.items()
    )
