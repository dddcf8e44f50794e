"""The host's end against supervisors that say anything: every conversation ends, in an answer or an error."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nanoagent.container.execution import RunControl
from nanoagent.model.errors import ContainerError, ProtocolError
from nanoagent.supervisor import gap, output, wire
from nanoagent.supervisor import session as session_module
from nanoagent.supervisor.exit_status import exit_code_of, signal_of
from nanoagent.supervisor.output import Captured, Collected, captured
from nanoagent.supervisor.session import Overdue, Session
from nanoagent.supervisor.stream import Disconnected
from nanoagent.supervisor.wire import LiveMode
from support.doubles import fake_supervisor as says
from support.doubles.fake_supervisor import Writer, talk
from support.doubles.fakes import make_settings
from support.sandboxes.containers import request_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

WAIT_S = 20.0
REQUEST = request_for(
    b"{}",
    capture_bytes=10,
    output_max_files=3,
    output_max_file_bytes=100,
    output_max_total_bytes=150,
    prepare_next=False,
)
REPORT = wire.ExitReport(0, wire.ExitFlag(0), *[0] * 9)


async def whole_run(session: Session, staging: Path) -> Collected:
    await session.greet()
    await session.prepare()
    await session.start(REQUEST)
    report = await session.wait_exit(REQUEST)
    return await session.collect(REQUEST, report, staging)


GOOD = [
    says.hello(),
    says.ready(),
    says.exited(stdout_total=2),
    wire.frame(wire.STDOUT, b"hi"),
    says.file(b"a/b", b"content"),
    says.refused(b"link"),
    says.done(),
]


async def test_a_run_that_goes_well(tmp_path):
    collected = await whole_run(talk(b"".join(GOOD)), tmp_path)
    assert (collected.stdout.text, collected.stderr.text, collected.clean) == ("hi", "", True)
    ((file,), (refusal,)) = collected.files, collected.refused
    assert (file.path, file.size, file.staged.read_bytes()) == ("a/b", 7, b"content")
    assert (refusal.path, refusal.reason) == ("link", wire.REFUSALS[1])


# --- hanging up, at every step


TO_THE_END = 3  # frames of GOOD up to the run's end; what follows are outputs


@pytest.mark.parametrize("said", range(TO_THE_END))
async def test_a_supervisor_that_hangs_up_between_frames_is_gone(said, tmp_path):
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(Disconnected):
            await whole_run(talk(b"".join(GOOD[:said])), tmp_path)


@pytest.mark.parametrize("said", range(TO_THE_END))
async def test_a_supervisor_that_hangs_up_within_a_frame_is_gone(said, tmp_path):
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(Disconnected):
            await whole_run(talk(b"".join(GOOD[:said]) + GOOD[said][:-1]), tmp_path)


@pytest.mark.parametrize("said", range(TO_THE_END, len(GOOD)))
@pytest.mark.parametrize("part", [0, 3], ids=["between frames", "within a frame"])
async def test_a_supervisor_that_hangs_up_among_outputs_loses_them_but_not_the_end(said, part, tmp_path):
    async with asyncio.timeout(WAIT_S):
        collected = await whole_run(talk(b"".join(GOOD[:said]) + GOOD[said][:part]), tmp_path)
    assert not collected.clean
    lost = "not all output was read, because the container died or was too slow"
    assert str(collected.refused[-1].reason) == lost
    assert collected.stdout.truncated_bytes == (2 if said == TO_THE_END else 0)
    assert all(file.staged.stat().st_size == file.size for file in collected.files)


async def test_a_session_knows_that_its_supervisor_has_hung_up():
    session = talk(b"")
    with pytest.raises(Disconnected):
        await session.greet()
    assert not session.is_usable


async def test_closing_is_fine_when_the_other_end_was_gone_first():
    session = talk(b"")
    await session.close()
    await session.close()


# --- falling silent


async def test_a_supervisor_that_does_not_greet_is_given_up(monkeypatch):
    monkeypatch.setattr(session_module, "_STEP_TIMEOUT_S", 0)
    with pytest.raises(ContainerError, match="did not answer"):
        await talk(b"", hangs_up=False).greet()


async def test_a_supervisor_that_does_not_get_ready_is_given_up(monkeypatch):
    monkeypatch.setattr(session_module, "_PREPARE_TIMEOUT_S", 0)
    with pytest.raises(ContainerError, match="did not answer"):
        await talk(b"", hangs_up=False).prepare()


async def test_a_supervisor_that_does_not_end_a_run_is_overdue(monkeypatch):
    monkeypatch.setattr(session_module, "_EXIT_MARGIN_S", 0)
    session = talk(b"", hangs_up=False)
    with pytest.raises(Overdue):
        await session.wait_exit(request_for(b"", timeout_ms=0, grace_ms=0))


@pytest.mark.parametrize("said", [b"", wire.frame(wire.STDOUT, b"x"), says.file(b"f", b"x", announced=2)])
async def test_a_supervisor_that_falls_silent_among_outputs_is_given_up(monkeypatch, tmp_path, said):
    monkeypatch.setattr(output, "_FRAME_TIMEOUT_S", 0.01)
    async with asyncio.timeout(WAIT_S):
        collected = await talk(said, hangs_up=False).collect(REQUEST, REPORT, tmp_path)
    assert (collected.clean, collected.files) == (False, [])


# --- saying the wrong thing


async def test_another_version_is_refused_with_the_remedy():
    with pytest.raises(ContainerError, match=r"protocol version 1.*nanoagent images"):
        await talk(says.hello(version=1)).greet()


ALL_KINDS = [bytes([kind]) for kind in range(256)]


def wrong_but(*kinds: bytes) -> list[bytes]:
    """Frames of every type but these."""
    return [wire.frame(kind, b"12") for kind in ALL_KINDS if kind not in kinds]


@pytest.mark.parametrize(
    ("step", "allowed"),
    [
        (Session.greet, [wire.HELLO]),
        (Session.prepare, [wire.READY]),
        (lambda session: session.wait_exit(REQUEST), [wire.EXIT]),
    ],
    ids=["greet", "prepare", "wait_exit"],
)
async def test_a_frame_out_of_order_is_refused(step: Callable[[Session], Awaitable[object]], allowed):
    for frame in wrong_but(*allowed):
        with pytest.raises(ProtocolError, match="expected"):
            await step(talk(frame))


async def test_a_run_cannot_be_done_before_its_end():
    with pytest.raises(ProtocolError, match="expected the end of the run"):
        await talk(says.done()).wait_exit(REQUEST)


async def test_a_frame_that_is_no_output_is_refused_among_outputs(tmp_path):
    for frame in wrong_but(wire.STDOUT, wire.STDERR, wire.FILE, wire.REFUSED, wire.DONE):
        with pytest.raises(ProtocolError, match="among a run's outputs"):
            await talk(frame).collect(REQUEST, REPORT, tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        wire.frame(wire.STDOUT, b"x" * 11),
        wire.frame(wire.STDERR, b"x" * 6) * 2,
        wire.frame(wire.STDOUT),
        says.file(b"f", b"", announced=101),
        says.file(b"f", b"", announced=2**64 - 1),
        b"".join(says.file(b"f%d" % i, b"") for i in range(4)),
        says.file(b"a", b"x" * 100) + says.file(b"b", b"x" * 51),
        says.file(b"f", b"xx", announced=1),
        says.file(b"f", b"", announced=1) + wire.frame(wire.DATA),
        says.file(b"f", b"x", announced=2) + wire.frame(wire.STDOUT, b"x"),
        says.file(b"f", b"x", announced=2) + says.done(),
        says.file(b"", b""),
        wire.frame(wire.REFUSED, b"\x63x"),
        wire.frame(wire.FILE, b"short"),
    ],
    ids=[
        "too much output",
        "too much output in pieces",
        "output of no length",
        "a file too large",
        "a file too large for any disk",
        "too many files",
        "too much in all files",
        "more than the file's size",
        "data of no length",
        "output within a file",
        "the end within a file",
        "a file without a name",
        "a refusal without a reason",
        "a short FILE",
    ],
)
async def test_outputs_that_were_not_asked_for_are_refused(said, tmp_path):
    with pytest.raises(ProtocolError):
        await talk(said + says.done()).collect(REQUEST, REPORT, tmp_path)


async def test_refusals_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "_MAX_REFUSALS", 150)
    with pytest.raises(ProtocolError, match="refused more than 150 files"):
        await talk(says.refused(b"x") * 151, hangs_up=False).collect(REQUEST, REPORT, tmp_path)


def test_no_setting_makes_possible_more_refusals_than_are_heard():
    make_settings(max_inodes=output._MAX_REFUSALS)
    with pytest.raises(ValidationError):
        make_settings(max_inodes=output._MAX_REFUSALS + 1)


async def test_many_refusals_are_summed_up(tmp_path):
    collected = await talk(says.refused(b"x") * 130 + says.done()).collect(REQUEST, REPORT, tmp_path)
    assert len(collected.refused) == 101
    assert str(collected.refused[-1].reason) == "30 more files were not uploaded"


@pytest.mark.parametrize("payload", [b"", b"\0", b"\2", b"\1\1"])
async def test_only_a_plain_yes_means_that_a_container_is_clean(payload, tmp_path):
    said = wire.frame(wire.DONE, payload)
    assert not (await talk(said).collect(REQUEST, REPORT, tmp_path)).clean


async def test_names_of_spooled_files_are_our_own(tmp_path):
    said = says.file(b"../../etc/passwd", b"x") + says.file(b"/etc/shadow", b"y") + says.done()
    collected = await talk(said).collect(REQUEST, REPORT, tmp_path)
    assert [file.staged for file in collected.files] == [tmp_path / "0", tmp_path / "1"]


async def test_a_refused_name_that_is_no_utf8_can_be_shown(tmp_path):
    collected = await talk(says.refused(b"\xff" * 5000) + says.done()).collect(REQUEST, REPORT, tmp_path)
    assert collected.refused[0].path == "�" * 1024


frames = st.lists(
    st.one_of(
        st.sampled_from([*GOOD, says.done(clean=False), says.exited(9), says.ready(error=28)]),
        st.builds(wire.frame, st.sampled_from(ALL_KINDS), st.binary(max_size=80)),
        st.binary(max_size=12),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=300)
@given(prefix=st.integers(0, len(GOOD)), frames=frames)
def test_whatever_is_said_the_conversation_ends(prefix, frames, tmp_path_factory):
    async def converse() -> None:
        staging = tmp_path_factory.mktemp("staging")
        async with asyncio.timeout(WAIT_S):
            await whole_run(talk(b"".join(GOOD[:prefix] + frames)), staging)

    try:
        asyncio.run(converse())
    except ContainerError:
        return


# --- what the agent says


async def test_code_that_cannot_be_copied_is_told_with_the_reason():
    with pytest.raises(ContainerError, match="No space left on device after 3 files"):
        await talk(says.ready(error=28, files=3)).prepare()


async def test_a_supervisor_that_takes_no_request_is_given_up(monkeypatch):
    monkeypatch.setattr(session_module, "_STEP_TIMEOUT_S", 0)
    writer = Writer()
    session = talk(b"", hangs_up=False, writer=writer)
    writer.protocol.pause_writing()
    with pytest.raises(ContainerError, match="took no request"):
        await session.start(REQUEST)


async def test_readiness_is_awaited_once():
    session = talk(says.ready(), hangs_up=False)
    await session.prepare()
    async with asyncio.timeout(WAIT_S):
        await session.ready()


async def after_a_run(said: bytes, tmp_path: Path) -> tuple[Session, Writer]:
    """A session whose container is idle after a run that has a next; what it said of that."""
    request, writer = request_for(b"", prepare_next=True), Writer()
    session = talk(says.exited() + says.done() + said, hangs_up=False, writer=writer)
    await session.start(request)
    await session.collect(request, await session.wait_exit(request), tmp_path)
    return session, writer


@pytest.mark.parametrize(
    ("said", "connected"),
    [
        (b"", True),
        (says.ready()[:-1], True),
        (says.ready(), True),
        (says.ready(error=28), False),
        (says.done(), False),
        (wire.frame(wire.READY), False),
        (b"\xff" * 5, False),
    ],
    ids=["nothing yet", "a part", "ready", "not ready", "something else", "too short", "no frame"],
)
async def test_what_an_idle_container_says_of_the_next_run_is_known_without_waiting(
    said, connected, tmp_path
):
    session, _ = await after_a_run(said, tmp_path)
    assert session.is_usable is connected


async def test_a_container_that_hangs_up_while_it_is_idle_is_not_connected(tmp_path):
    session, writer = await after_a_run(says.ready(), tmp_path)
    writer.protocol.connection_lost(None)
    assert not session.is_usable


async def test_a_container_that_does_not_get_ready_while_it_is_idle_is_not_connected(tmp_path, monkeypatch):
    monkeypatch.setattr(session_module, "_PREPARE_TIMEOUT_S", -1)
    session, _ = await after_a_run(b"", tmp_path)
    assert not session.is_usable
    with pytest.raises(ContainerError, match="did not answer"):
        await session.ready()


async def test_what_nobody_asks_for_is_left_in_the_socket_until_somebody_does(tmp_path):
    writer = Writer()
    session = talk(b"", hangs_up=False, writer=writer)
    while writer.reads:
        writer.protocol.data_received(says.refused(b"x" * 1000))
    writer.protocol.data_received(says.done())  # came with the last of them
    await session.collect(REQUEST, REPORT, tmp_path)
    assert writer.reads


async def test_after_a_run_that_has_a_next_readiness_is_awaited(tmp_path):
    request = request_for(b"", prepare_next=True)
    session = talk(says.exited() + says.done() + says.ready(error=28))
    await session.start(request)
    await session.collect(request, await session.wait_exit(request), tmp_path)
    with pytest.raises(ContainerError, match="No space left"):
        await session.ready()


async def test_live_output_is_passed_on_in_order_before_the_end_of_the_run():
    pieces = [(wire.STDOUT, 0, b"a"), (wire.STDERR, 0, b"b"), (wire.STDOUT, 7, b"c")]
    session = talk(b"".join(says.live(name, text, at) for name, at, text in pieces) + says.exited())
    request, seen = request_for(b"", live=LiveMode.LIMITED), []
    await session.start(request)
    await session.wait_exit(request, lambda *piece: seen.append(piece))
    assert seen == pieces


@pytest.mark.parametrize(
    "frame",
    [
        says.live(b"X", b"a"),
        says.live(wire.STDOUT, b"a", 1 << 60),
        says.live(wire.STDOUT, b""),
        wire.frame(wire.LIVE),
    ],
)
async def test_live_output_without_a_known_stream_position_or_output_is_refused(frame):
    request = request_for(b"", live=LiveMode.LIMITED)
    with pytest.raises(ProtocolError, match=r"the supervisor sent (no output|output of an unknown stream)"):
        await talk(frame).wait_exit(request, lambda *_: None)


async def test_live_output_that_was_not_requested_is_refused():
    with pytest.raises(ProtocolError, match="expected the end of the run"):
        await talk(says.live(wire.STDOUT, b"a")).wait_exit(REQUEST)
    with pytest.raises(ProtocolError, match="not requested"):
        await talk(says.live(wire.STDOUT, b"a")).wait_exit(REQUEST, RunControl().take_output)


async def test_live_output_without_end_is_overdue(monkeypatch):
    monkeypatch.setattr(session_module, "_EXIT_MARGIN_S", 0.0)
    request = request_for(b"", live=LiveMode.LIMITED, timeout_ms=1, grace_ms=1)
    session = talk(says.live(wire.STDOUT, b"a") * 2, hangs_up=False)
    with pytest.raises(Overdue):
        await session.wait_exit(request, lambda *_: time.sleep(0.01))


async def test_killing_says_so():
    writer = Writer()
    talk(b"", writer=writer).kill()
    assert writer.written == wire.frame(wire.KILL)


# --- exit codes and signals


@pytest.mark.parametrize(
    ("status", "code"), [(0, 0), (1 << 8, 1), (255 << 8, 255), (9, 137), (11 | 0x80, 139)]
)
def test_an_exit_code_is_the_programs_own_or_128_and_the_signal(status, code):
    assert exit_code_of(status) == code


@pytest.mark.parametrize(
    ("status", "killed_by"),
    [(0, None), (9 << 8, None), (9, signal.SIGKILL), (6 | 0x80, signal.SIGABRT), (40, signal.SIGRTMIN)],
)
def test_a_signal_is_told_from_an_exit_code(status, killed_by):
    assert signal_of(status) == killed_by


# --- captured output


def test_output_that_fits_is_whole():
    assert captured(b"hello", 5, 10) == Captured("hello", 0)


def test_output_that_does_not_fit_says_between_head_and_tail_how_much_is_missing():
    assert captured(b"HEADStail", 100, 9) == Captured("HEADS", 91, "tail")


def test_bytes_that_are_no_utf8_become_replacement_characters():
    assert captured(b"a\xffb", 3, 10).text == "a�b"


def test_a_character_that_the_cut_splits_is_counted_as_missing():
    kept = "가".encode()[:2] + "나".encode()[1:]
    assert captured(kept, 50, 4).text == "\n… 50 bytes cut …\n"


def test_bytes_that_are_no_utf8_are_replaced_at_the_cut_as_well():
    assert captured(b"\xff" + b"\x80" * 9, 100, 10) == Captured("�" * 5, 90, "�" * 5)


def test_the_line_about_the_gap_has_the_language_of_the_result():
    stream = captured(b"HEADStail", 100, 9).in_every_language()
    assert stream.in_("ko") == "HEADS\n… 91바이트 생략 …\ntail"
    assert stream.in_("en") == "HEADS\n… 91 bytes cut …\ntail"
    assert gap.split(stream.ko) == gap.split(stream.en) == ("HEADS", "tail")


def kept_of(output: bytes, capacity: int) -> bytes:
    """What a supervisor sends of it."""
    if len(output) <= capacity:
        return output
    return output[: capacity - capacity // 2] + output[len(output) - capacity // 2 :]


@settings(deadline=None)
@given(output=st.binary(max_size=60), capacity=st.integers(2, 40))
def test_what_was_kept_and_what_was_cut_add_up(output, capacity):
    result = captured(kept_of(output, capacity), len(output), capacity)
    missing = max(0, len(output) - capacity)
    assert missing <= result.truncated_bytes <= missing + 6
    assert (result.truncated_bytes == 0) == (missing == 0)
    if not missing:
        assert result.text == output.decode(errors="replace")


@settings(deadline=None)
@given(text=st.text(max_size=60), capacity=st.integers(2, 40))
def test_no_cut_makes_valid_utf8_invalid_and_every_byte_is_shown_or_counted(text, capacity):
    output = text.encode()
    result = captured(kept_of(output, capacity), len(output), capacity)
    assert text.startswith(result.head)
    assert text.endswith(result.tail)
    assert len((result.head + result.tail).encode()) + result.truncated_bytes == len(output)
