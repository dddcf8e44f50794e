"""The part of DNS that programs need: queries with one question, answered with one address or none.

RFC 1035 and RFC 6891 (a client that asks with EDNS accepts an answer without it). All messages that are read
here are hostile.
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAX_QUERY_BYTES: Final = 512  # RFC 1035, section 4.2.1; a query with one question has at most about half
_HEADER: Final = struct.Struct(">HHHHHH")
_QUESTION: Final = struct.Struct(">HH")
_ANSWER: Final = struct.Struct(">HHHIH4s")
_IS_RESPONSE: Final = 0x8000
_OPCODE: Final = 0x7800
_RECURSION_DESIRED: Final = 0x0100
_RECURSION_AVAILABLE: Final = 0x0080
_MAX_LABEL_BYTES: Final = 63
_MAX_NAME_BYTES: Final = 255
_POINTER_TO_QUESTION: Final = 0xC000 | _HEADER.size
_INTERNET: Final = 1
_PLAIN_LABEL: Final = re.compile(rb"[A-Za-z0-9_-]+")
# RFC 1035, section 5.1: \X stands for the character X, \DDD for the byte with that decimal number.
_ESCAPES: Final = tuple(
    f"\\{chr(byte)}" if chr(byte) in ".\\" else chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03}"
    for byte in range(256)
)
# A name keeps its address for the whole run, so clients need not ask often.
_TTL_S: Final = 60


class ResponseCode(IntEnum):
    """Response codes, RFC 1035, section 4.1.1."""

    OK = 0
    FORMAT_ERROR = 1
    FAILED = 2
    NO_SUCH_NAME = 3
    NOT_IMPLEMENTED = 4


class RecordType(IntEnum):
    """The record types that are answered with an address."""

    A = 1


@dataclass(frozen=True, slots=True)
class Query:
    """A valid query.

    Attributes:
        number: The ID of the query. The answer repeats it.
        flags: The flags of the query.
        question: The bytes of the question. The answer repeats them.
        name: The name in the question, without the dot at its end, escaped as in RFC 1035, section 5.1.
            Different lists of labels have different names.
        wants_address: Whether an IPv4 address answers the question.
    """

    number: int
    flags: int
    question: bytes
    name: str
    wants_address: bool


def parse(message: bytes) -> Query | bytes | None:
    """Parse a message from a run.

    Returns:
        The query, if it is valid. The bytes of the error answer, if it is invalid. None, if the message gets
        no answer.
    """
    if len(message) < _HEADER.size or len(message) > MAX_QUERY_BYTES:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(message)
    if flags & _IS_RESPONSE:
        return None
    if flags & _OPCODE:
        return _response(number, flags, ResponseCode.NOT_IMPLEMENTED)
    labels: list[bytes] = []
    at = _HEADER.size
    while questions == 1 and at < len(message):
        length = message[at]
        if length > _MAX_LABEL_BYTES:  # a compression pointer, which cannot occur in the first name
            break
        label = message[at + 1 : at + 1 + length]
        at += 1 + length
        if length == 0:
            end = at + _QUESTION.size
            if end > len(message) or end - _HEADER.size - _QUESTION.size > _MAX_NAME_BYTES:
                break
            kind, family = _QUESTION.unpack_from(message, at)
            name = ".".join(map(_escaped, labels))
            wants_address = kind == RecordType.A and family == _INTERNET
            return Query(number, flags, message[_HEADER.size : end], name, wants_address)
        labels.append(label)
    return _response(number, flags, ResponseCode.FORMAT_ERROR)


def _escaped(label: bytes) -> str:
    """Return a label as text. Dots, backslashes and bytes that cannot be printed are escaped."""
    if _PLAIN_LABEL.fullmatch(label):
        return label.decode()
    return "".join(_ESCAPES[byte] for byte in label)


def answer(query: Query, address: str | None = None, code: ResponseCode = ResponseCode.OK) -> bytes:
    """Return the answer to a query.

    Args:
        query: The query.
        address: The IPv4 address of the name; None for an answer without an address.
        code: The response code.
    """
    head = _response(query.number, query.flags, code, questions=1, answers=int(address is not None))
    if address is None:
        return head + query.question
    record = _ANSWER.pack(_POINTER_TO_QUESTION, RecordType.A, _INTERNET, _TTL_S, 4, socket.inet_aton(address))
    return head + query.question + record


def _response(number: int, flags: int, code: ResponseCode, *, questions: int = 0, answers: int = 0) -> bytes:
    repeated = flags & (_OPCODE | _RECURSION_DESIRED)
    return _HEADER.pack(
        number, _IS_RESPONSE | repeated | _RECURSION_AVAILABLE | code, questions, answers, 0, 0
    )
