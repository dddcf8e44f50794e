from __future__ import annotations

import itertools
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoagent.model.errors import ProtocolError
from nanoagent.supervisor import wire
from support.sandboxes.containers import request_for

UNHURRIED = settings(deadline=None)  # the machine is shared
RUN_HEADER = struct.Struct("<IIIQIIQQIIIBBI")  # struct run_request of src/nanosupervisor/wire.h


def taken(*pieces: bytes) -> list[tuple[bytes, bytes]]:
    """The frames of a stream that arrives in these pieces."""
    frames, stream = [], wire.Frames()
    for piece in pieces:
        stream.feed(piece)
        while (frame := stream.take()) is not None:
            frames.append(frame)
    return frames


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * wire.MAX_FRAME_BYTES], ids=len)
def test_a_frame_is_read_as_it_was_written(payload):
    assert taken(wire.frame(b"O", payload)) == [(b"O", payload)]


@UNHURRIED
@given(
    frames=st.lists(st.tuples(st.sampled_from([b"O", b"X", b"\xff"]), st.binary(max_size=20)), max_size=5),
    cuts=st.lists(st.integers(0, 100), max_size=8),
)
def test_frames_are_the_same_in_whatever_pieces_they_arrive(frames, cuts):
    stream = b"".join(wire.frame(*frame) for frame in frames)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    assert taken(*(stream[start:end] for start, end in itertools.pairwise(edges))) == frames


@pytest.mark.parametrize("length", [wire.MAX_FRAME_BYTES + 1, 2**31, 2**32 - 1])
def test_a_frame_longer_than_any_honest_one_is_refused_before_it_is_read(length):
    with pytest.raises(ProtocolError, match=str(length)):
        taken(struct.pack("<Ic", length, b"O"))  # and nothing more: who waited for it would hang


@UNHURRIED
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_frames_or_an_error(data):
    try:
        frames = taken(data)
    except ProtocolError:
        return
    assert data.startswith(b"".join(wire.frame(*frame) for frame in frames))


@pytest.mark.parametrize("decode", [wire.decode_version, wire.decode_ready, wire.decode_exit])
@UNHURRIED
@given(payload=st.binary(max_size=100))
def test_a_payload_of_fixed_layout_has_its_length_or_is_an_error(decode, payload):
    length = {wire.decode_version: 4, wire.decode_ready: 17, wire.decode_exit: 64}[decode]
    try:
        decode(payload)
    except ProtocolError:
        return
    assert len(payload) == length


@UNHURRIED
@given(payload=st.binary(min_size=64, max_size=64))
def test_a_programs_end_is_one_that_the_kernel_can_report(payload):
    try:
        report = wire.decode_exit(payload)
    except ProtocolError:
        return
    assert isinstance(os.waitstatus_to_exitcode(report.wait_status & 0xFFFF), int)
    assert 0 <= report.flags < 64


@pytest.mark.parametrize("status", [0x137F, 0xFFFF, 0x7F], ids=["stopped", "continued", "stopped by 0"])
def test_a_program_that_has_not_ended_is_refused(status):
    with pytest.raises(ProtocolError, match="not the end of a process"):
        wire.decode_exit(struct.pack("<IIQQQQQIIII", status, *[0] * 10))


def test_every_flag_of_an_exit_arrives_and_unknown_ones_do_not():
    report = wire.decode_exit(struct.pack("<IIQQQQQIIII", 0, 0xFFFF_FFFF, *[0] * 9))
    assert list(report.flags) == list(wire.ExitFlag)


def test_an_exit_is_read_field_by_field():
    report = wire.decode_exit(struct.pack("<IIQQQQQIIII", 256, 5, *range(3, 12)))
    assert (report.wait_status, report.flags) == (256, wire.ExitFlag.TIMED_OUT | wire.ExitFlag.DISK_FULL)
    assert (report.wall_us, report.user_us, report.system_us) == (3, 4, 5)
    assert (report.stdout_total, report.stderr_total, report.stdout_kept, report.stderr_kept) == (6, 7, 8, 9)
    assert (report.left_over, report.exec_error) == (10, 11)


@pytest.mark.parametrize("payload", [b"", b"1234567", b"12345678"], ids=len)
def test_a_file_without_a_name_is_refused(payload):
    with pytest.raises(ProtocolError, match="without a name"):
        wire.decode_file(payload)


def test_a_file_is_a_size_and_a_path():
    assert wire.decode_file(struct.pack("<Q", 2**40) + b"a/\xff") == (2**40, b"a/\xff")


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0x", b"\x08x", b"\xffx"])
def test_a_refusal_without_a_known_reason_is_refused(payload):
    with pytest.raises(ProtocolError, match="without a known reason"):
        wire.decode_refused(payload)


def test_a_refusal_without_a_path_is_of_all_of_output():
    assert wire.decode_refused(b"\7") == (wire.REFUSALS[7], b"")


@pytest.mark.parametrize("code", wire.REFUSALS)
def test_every_refusal_has_a_reason_for_a_person(code):
    reason, path = wire.decode_refused(bytes([code]) + b"a/b")
    assert (reason, path) == (wire.REFUSALS[code], b"a/b")
    assert reason.en[0].islower()


# Without NUL: execve(2) could not carry it either.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
names = texts.filter(lambda name: "=" not in name)


@UNHURRIED
@given(
    arguments=st.lists(texts, min_size=1, max_size=4),
    environment=st.dictionaries(names, texts, max_size=4),
    payload=st.binary(max_size=50),
    flags=st.fixed_dictionaries(
        {
            "prepare_next": st.booleans(),
            "live": st.sampled_from(wire.LiveMode),
            "live_bytes_per_s": st.just(9),
        }
    ),
)
def test_a_request_is_laid_out_as_the_supervisor_reads_it(arguments, environment, payload, flags):
    request = request_for(payload, arguments=arguments, environment=environment, timeout_ms=7, **flags)
    encoded = request.encode()
    fields = RUN_HEADER.unpack_from(encoded)
    rest = encoded[RUN_HEADER.size :]
    assert fields == (
        *(7, request.grace_ms, request.capture_bytes, request.file_size_bytes, request.open_files),
        *(request.output_max_files, request.output_max_file_bytes, request.output_max_total_bytes),
        *(len(arguments), len(environment), len(payload), flags["prepare_next"], flags["live"], 9),
    )
    strings = [*arguments, *(f"{name}={value}" for name, value in environment.items())]
    assert rest == b"".join(string.encode() + b"\0" for string in strings) + payload


def test_bytes_that_are_no_utf8_go_through_the_environment_unchanged():
    value = b"\xff\xfe".decode(errors="surrogateescape")
    assert b"A=\xff\xfe\0" in request_for(b"", environment={"A": value}).encode()
