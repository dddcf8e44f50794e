"""Recognises jobs in the envelope of another service, for the operator's log. Pure functions.

A message without a requestId is unreadable. Most such messages are jobs in the envelope of another AWS
service, or jobs in another encoding. The text of a message is hostile; SQS limits its length.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_plus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_MIN_BASE64: Final = 16
_MAX_CHARACTERS: Final = 1024 * 1024  # the limit of SQS
_GZIP: Final = b"\x1f\x8b"
_URL_ENCODED: Final = re.compile(r"\s*%7[bB]")
_FORM: Final = re.compile(r"[\w.%+-]{1,100}=[^\s{]*(?:&|$)")
_EVENT_SOURCES: Final = {
    "aws:s3": ("S3 event", "it names an object, not a job: send a job message from the event's consumer"),
    "aws:sqs": ("Lambda event of SQS records", "send the record's body, not the event"),
    "aws:sns": ("Lambda event of SNS records", "send the record's Sns.Message, not the event"),
    "aws:kinesis": ("Kinesis event", "send the decoded kinesis.data, not the event"),
    "aws:dynamodb": ("DynamoDB stream event", "send a job message from the event's consumer"),
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope around a job, or an encoding of a job.

    Attributes:
        name: The name of the envelope or encoding.
        advice: The remedy for the sender or the operator.
    """

    name: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name}: {self.advice}"


def recognise(body: str | bytes) -> Envelope | None:
    """Return the envelope or encoding of an unreadable message; None if it is unknown."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    if len(text) > _MAX_CHARACTERS:
        return None
    text = text.strip("\ufeff \t\r\n")
    value = _json(text)
    if isinstance(value, dict):
        return _of_object(value)
    if isinstance(value, list):
        return Envelope("JSON array", "send one message for each job")
    if isinstance(value, str) and isinstance(_json(value), dict):
        return Envelope("JSON text within a JSON string", "encode the job once")
    return _of_text(value if isinstance(value, str) else text)


# --- objects


def _of_object(value: Mapping[str, Any]) -> Envelope | None:
    for has_its_fields, envelope in _OBJECTS:
        if has_its_fields(value):
            return envelope
    return _of_records(value.get("Records")) or _misspelt(value)


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda value: all(name in value for name in names)


def _has_text(name: str, text: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda value: value.get(name) == text


_OBJECTS: Final[tuple[tuple[Callable[[Mapping[str, Any]], bool], Envelope], ...]] = (
    (
        _has("TopicArn", "Message", "SubscribeURL"),
        Envelope("SNS subscription confirmation", "confirm the subscription, or remove it from the topic"),
    ),
    (
        _has("TopicArn", "Message"),
        Envelope("SNS envelope", "turn on raw message delivery for the subscription"),
    ),
    (
        _has("detail-type", "detail"),
        Envelope("EventBridge event", "give the rule's target the input path $.detail"),
    ),
    (
        _has_text("Event", "s3:TestEvent"),
        Envelope("S3 test event", "S3 sends it when the notification is set up; it can be ignored"),
    ),
    (
        _has("requestPayload", "requestContext"),
        Envelope("Lambda destination record", "send its responsePayload, not the record"),
    ),
    (
        _has("requestContext", "body"),
        Envelope("API Gateway event", "send its body, not the event"),
    ),
    (
        _has("httpMethod", "body"),
        Envelope("API Gateway event", "send its body, not the event"),
    ),
    (
        _has("specversion", "data"),
        Envelope("CloudEvents envelope", "send its data, not the event"),
    ),
    (
        _has("MessageId", "ReceiptHandle", "Body"),
        Envelope("SQS message as it was received", "send its Body, not the message"),
    ),
    (
        _has("MessageBody"),
        Envelope("SendMessage request", "send its MessageBody as the body"),
    ),
    (
        _has("body", "content-encoding"),
        Envelope("Celery message", "send the job's JSON itself"),
    ),
)


def _of_records(records: object) -> Envelope | None:
    if not isinstance(records, list) or not records or not isinstance(records[0], dict):
        return None
    source = records[0].get("eventSource") or records[0].get("EventSource")
    known = _EVENT_SOURCES.get(source) if isinstance(source, str) else None
    return Envelope(*known) if known else Envelope("Lambda event", "send the job, not the event")


def _misspelt(value: Mapping[str, Any]) -> Envelope | None:
    """Recognise a job with a misspelt field requestId, and a job inside a field of the message."""
    for name in value:
        if re.sub(r"[_\- ]", "", name).lower() == "requestid" and name != "requestId":
            return Envelope(f"field {json.dumps(name[:64])}", "name it requestId")
    for name in ("job", "payload", "message", "body", "data", "input", "detail"):
        inner = value.get(name)
        inner = _json(inner) if isinstance(inner, str) else inner
        if isinstance(inner, dict) and "requestId" in inner:
            return Envelope(f'job within the field "{name}"', "send the job itself")
    return None


# --- other text


def _of_text(text: str) -> Envelope | None:
    if _URL_ENCODED.match(text) and isinstance(_json(unquote_plus(text)), dict):
        return Envelope("URL-encoded JSON", "send the JSON itself")
    joined = "".join(text.split())  # base64 in MIME has line breaks
    if _BASE64.fullmatch(joined) and len(joined) >= _MIN_BASE64:
        decoded = _base64(joined)
        if decoded.startswith(_GZIP):
            return Envelope("gzip in base64", "send the JSON itself")
        if decoded.lstrip().startswith((b"{", b"[", b'"{')) and _json(decoded) is not None:
            return Envelope("base64", "send the JSON itself")
    if text.startswith("<"):
        return Envelope("XML", "send JSON")
    if _FORM.match(text):
        return Envelope("form data", "send JSON")
    return None


def _json(text: str | bytes) -> object:
    """Return the decoded value; None if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _base64(text: str) -> bytes:
    """Decode base64 in the standard or URL alphabet, with or without padding; empty if it is invalid."""
    standard = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4))
    except (ValueError, binascii.Error):
        return b""
