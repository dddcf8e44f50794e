"""The answers to queries, honest and hostile, byte by byte."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.network import dns
from nanoagent.network.policy import host_name

A, NS, PTR, TXT, AAAA, HTTPS, ANY = 1, 2, 12, 16, 28, 65, 255


def query(name: bytes, kind: int = A, *, number: int = 7, flags: int = 0x0100, family: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label for label in name.split(b".") if label) + b"\0"
    return struct.pack(">HHHHHH", number, flags, 1, 0, 0, 0) + labels + struct.pack(">HH", kind, family)


def parsed(message: bytes) -> dns.Query:
    found = dns.parse(message)
    assert isinstance(found, dns.Query)
    return found


def code_of(message: bytes | dns.Query | None) -> int:
    assert isinstance(message, bytes)
    return message[3] & 15


def test_an_address_is_answered_to_its_question():
    asked = query(b"api.example.com", number=0xBEEF)
    reply = dns.answer(parsed(asked), "127.64.0.1")
    number, flags, questions, answers, authorities, additional = struct.unpack_from(">HHHHHH", reply)
    assert (number, flags, questions, answers, authorities, additional) == (0xBEEF, 0x8180, 1, 1, 0, 0)
    assert reply[12 : len(asked)] == asked[12:]
    assert reply[len(asked) :] == struct.pack(">HHHIH", 0xC00C, A, 1, 60, 4) + bytes([127, 64, 0, 1])


@pytest.mark.parametrize(
    ("kind", "wants"), [(A, True), *((kind, False) for kind in (AAAA, TXT, PTR, HTTPS, NS, ANY))]
)
def test_only_an_ipv4_address_is_given(kind, wants):
    assert parsed(query(b"a.example", kind)).wants_address is wants


def test_another_family_than_the_internets_gets_no_address():
    assert not parsed(query(b"a.example", A, family=3)).wants_address


def test_an_answer_without_address_repeats_the_question_and_the_code():
    reply = dns.answer(parsed(query(b"a.example")), code=dns.ResponseCode.NO_SUCH_NAME)
    assert code_of(reply) == 3
    assert struct.unpack_from(">HHHH", reply)[2:] == (1, 0)


def test_what_comes_behind_the_question_is_no_matter():
    with_edns = query(b"a.example") + b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0)
    assert parsed(with_edns).name == "a.example"


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (b"a.b", "a\\.b.example"),
        (b"\xff\x00 ", "\\255\\000\\032.example"),
        (b"\\", "\\\\.example"),
        (b"\\.", "\\\\\\..example"),
        (b"a\\.b", "a\\\\\\.b.example"),
        (b"EXAMPLE", "EXAMPLE.example"),
    ],
)
def test_bytes_that_no_host_has_make_no_hosts_name(label, name):
    message = query(b"example")
    message = message[:12] + bytes([len(label)]) + label + message[12:]
    assert parsed(message).name == name


HEAD = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0)


@pytest.mark.parametrize(
    "message",
    [
        HEAD,
        HEAD + b"\xc0\x0c\0\x01\0\x01",  # a pointer to itself
        HEAD + b"\x40" + b"a" * 64 + b"\0\0\x01\0\x01",
        HEAD + b"\x05abc",
        HEAD + b"\x01a\0\0\x01",
        HEAD + b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 3 + b"\x3f" + b"a" * 63 + b"\0\0\x01\0\x01",
        struct.pack(">HHHHHH", 7, 0x0100, 0, 0, 0, 0),
        struct.pack(">HHHHHH", 7, 0x0100, 2, 0, 0, 0) + query(b"a.b")[12:] * 2,
        struct.pack(">HHHHHH", 7, 0x0100, 65535, 65535, 65535, 65535),
    ],
)
def test_a_query_that_cannot_be_understood_is_told_so(message):
    assert code_of(dns.parse(message)) == dns.ResponseCode.FORMAT_ERROR


@pytest.mark.parametrize(
    "message", [b"", b"\0" * 11, query(b"a.b", flags=0x8180), query(b"a.b") + b"\0" * 512]
)
def test_what_is_no_query_deserves_no_answer(message):
    assert dns.parse(message) is None


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_other_operations_than_a_query_are_not_implemented(opcode):
    assert code_of(dns.parse(query(b"a.b", flags=opcode << 11))) == dns.ResponseCode.NOT_IMPLEMENTED


@given(message=st.one_of(st.binary(max_size=600), st.binary(max_size=300).map(lambda tail: HEAD + tail)))
def test_any_bytes_are_answered_or_not_and_never_with_more_than_was_asked(message):
    found = dns.parse(message)
    if isinstance(found, dns.Query):
        assert found.question in message
        assert found.name.isascii()
        assert len(dns.answer(found, "127.64.0.1")) <= len(message) + 16
    elif found is not None:
        assert len(found) == 12
        assert found[:2] == message[:2]


TRICKY = st.binary(min_size=1, max_size=63) | st.lists(
    st.sampled_from([b"\\", b".", b"\0", b"0", b"a"]), min_size=1, max_size=6
).map(b"".join)


def unescaped(name: str) -> list[bytes]:
    """The labels that a name in RFC 1035's presentation form stands for."""
    if not name:
        return []
    labels = [bytearray()]
    for escape, dot, plain in re.findall(r"\\([0-9]{3}|.)|(\.)|(.)", name):
        if dot:
            labels.append(bytearray())
        else:
            labels[-1] += bytes([int(escape)]) if len(escape) == 3 else (escape or plain).encode()
    return list(map(bytes, labels))


@given(labels=st.lists(TRICKY, max_size=3))
def test_a_name_stands_for_its_labels_and_for_no_others(labels: list[bytes]):
    message = HEAD + b"".join(bytes([len(label)]) + label for label in labels) + b"\0\0\x01\0\x01"
    assert unescaped(parsed(message).name) == labels


@pytest.mark.parametrize("label", [b"api.example", b"api\\", b"\\api", b"api\0", b"api "])
def test_a_label_with_a_byte_that_no_host_has_is_outside_every_allow_list(label: bytes):
    asked = HEAD + bytes([len(label)]) + label + b"\x07example\x03com\0\0\x01\0\x01"
    assert host_name(parsed(asked).name) is None
