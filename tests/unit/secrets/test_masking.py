"""The values of secrets in output, whole, cut and in pieces."""

from __future__ import annotations

import base64
import itertools
import json
import re
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.container import output_masking
from nanoagent.container.execution import RunControl
from nanoagent.model.result import Refusal
from nanoagent.model.text import Text
from nanoagent.secrets.masking import Mask
from nanoagent.supervisor.output import Captured, Collected

SECRET = "p\"a'ss/w<ö>r\\d&+ 1"
OUT, ERR = b"O", b"E"
# Few letters, so that values overlap each other, themselves and the borders of pieces.
VALUES = st.lists(st.text(alphabet="ab", min_size=4, max_size=7), min_size=1, max_size=3)
TEXTS = st.text(alphabet="abc", max_size=40)


def live(mask: Mask, pieces: list[bytes]) -> bytes:
    """What a follower gets of one stream."""
    passed: list[bytes] = []
    follower = mask.live(lambda _, piece: passed.append(piece))
    for piece in pieces:
        follower(OUT, piece)
    follower.flush()
    return b"".join(passed)


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        repr(SECRET)[1:-1],
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="!'()*"),  # encodeURIComponent
        quote_plus(SECRET),
        "p\\\"a'ss/w\\u003cö\\u003er\\\\d\\u0026+ 1",  # json.Marshal of Go
    ],
)
def test_the_common_ways_to_write_a_value_are_hidden(written: str):
    assert Mask([SECRET]).hide(f"a {written} b") == "a *** b"


@pytest.mark.parametrize("before", ["", "u", "us", "user:"])
@pytest.mark.parametrize("behind", ["", "x", "xy"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_hidden_also_after_other_text(before: str, behind: str, encode):
    secret = "hunter2-hunter3?>"
    written = encode(f"{before}{secret}{behind}".encode()).decode()
    hidden = Mask([secret]).hide(written)
    assert "***" in hidden
    # What is left depends on the text around it, and is a few characters long.
    assert all(len(part) <= 8 for part in hidden.split("***"))


def test_lines_and_json_members_are_hidden():
    key = "-----BEGIN KEY-----\nMIIabcdef\n  QQQQ==\n-----END KEY-----\n"
    assert Mask([key]).hide("log: MIIabcdef\nlog: QQQQ==") == "log: ***\nlog: ***"
    document = json.dumps({"user": "admin", "password": "hunter2", "more": ["first-one", 5], "no": None})
    assert Mask([document]).hide("admin hunter2 first-one 5") == "*** *** *** 5"


def test_short_values_are_not_hidden():
    assert Mask(["abc", "", "1234"]).hide("abc 1234") == "abc ***"


@given(value=st.text(alphabet="ab", min_size=4, max_size=9), text=st.text(alphabet="ab", max_size=60))
def test_every_place_of_a_value_is_hidden(value: str, text: str):
    covered = {
        place
        for start in range(len(text))
        if text.startswith(value, start)
        for place in range(start, start + len(value))
    }
    expected = "".join("*" if place in covered else letter for place, letter in enumerate(text))
    shown = re.sub(r"\*{3}", "*", Mask([value]).hide(text))
    # Values that follow each other without an overlap may have a mark each.
    assert re.sub(r"\*+", "*", shown) == re.sub(r"\*+", "*", expected)


def test_a_long_value_is_hidden_as_one_and_at_each_cut():
    value = "".join(f"{number:05}" for number in range(400))
    mask = Mask([value])
    assert mask.hide(f"a {value} b") == "a *** b"
    for cut in (1, 255, 256, 257, 700, 1999):
        head, tail = mask.hide_parts(f"a {value[:cut]}", f"{value[cut:]} b")
        assert (head.replace("***", ""), tail.replace("***", "")) == ("a ", " b")
    assert live(mask, [value[at : at + 300].encode() for at in range(0, len(value), 300)]) == b"***"


def test_output_and_values_of_one_letter_take_little_time():
    # To try each place would take minutes.
    values = ["a" * length for length in (4, 100, 1000, 30_000)]
    assert Mask(values).hide("a" * 262_144) == "***"
    assert Mask([f"{'a' * 16_000}b{'a' * 16_000}"]).hide_parts("a" * 131_072, "a" * 131_072)[0] == "***"


def test_values_that_overlap_leave_nothing():
    assert Mask(["abcdef", "defghi"]).hide("abcdefghi") == "***"
    assert Mask(["aaaa"]).hide("aaaaa b") == "*** b"


@pytest.mark.parametrize(
    ("head", "tail", "shown"),
    [
        ("begin hunt", "er22 end", ("begin ***", "*** end")),
        ("begin hunter", "2 end", ("begin ***", "*** end")),
        ("begin h", " end", ("begin ***", " end")),
        ("hunter22", "hunter22", ("***", "***")),
        ("begin", "end", ("begin", "end")),
    ],
)
def test_a_value_at_the_cut_is_hidden_on_both_sides(head: str, tail: str, shown: tuple[str, str]):
    assert Mask(["hunter22"]).hide_parts(head, tail) == shown


@given(values=VALUES, head=TEXTS, tail=TEXTS)
def test_no_part_of_a_value_is_next_to_the_cut(values: list[str], head: str, tail: str):
    head, tail = Mask(values).hide_parts(head, tail)
    for value in values:
        assert value not in head
        assert value not in tail
        assert not any(head.endswith(value[:length]) for length in range(1, len(value)))
        assert not any(tail.startswith(value[-length:]) for length in range(1, len(value)))


@given(values=VALUES, text=TEXTS, cuts=st.lists(st.integers(0, 40), max_size=8))
def test_pieces_are_masked_as_the_whole_is(values: list[str], text: str, cuts: list[int]):
    mask = Mask(values)
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end].encode() for start, end in itertools.pairwise(borders)]
    assert live(mask, pieces).decode() == mask.hide(text)
    assert not any(value in mask.hide(text) for value in values)


def test_output_that_cannot_begin_a_value_is_passed_on_at_once():
    passed: list[tuple[bytes, bytes]] = []
    follower = Mask(["hunter22"]).live(lambda stream, piece: passed.append((stream, piece)))
    follower(OUT, b"line\n")
    follower(OUT, b"a hunt")
    follower(ERR, b"er22\n")
    assert passed == [(OUT, b"line\n"), (OUT, b"a "), (ERR, b"er22\n")]
    follower(OUT, b"er22 b")
    assert passed[3:] == [(OUT, b"*** b")]
    follower(OUT, b"hunt")
    follower.flush()
    follower.flush()
    assert passed[4:] == [(OUT, b"hunt")]


def test_bytes_that_are_no_text_are_passed_on_unchanged():
    assert live(Mask(["hunter22"]), [b"\xff\xfe hunt", b"er22 \xc3"]) == b"\xff\xfe *** \xc3"


def test_both_streams_and_the_names_of_refused_files_are_masked():
    why = Text.verbatim("why")
    collected = Collected(
        Captured("a hunter22"), Captured("a hunt", 7, "22 b"), refused=[Refusal("x-hunter22", why)]
    )
    output_masking.hide_secrets(collected, Mask(["hunter22"]))
    assert collected.stdout == Captured("a ***")
    assert collected.stderr == Captured("a ***", 7, "*** b")
    assert collected.refused == [Refusal("x-***", why)]


def test_a_run_that_is_followed_gets_masked_output():
    passed: list[tuple[Any, ...]] = []
    control = RunControl(on_output=lambda *piece: passed.append(piece))
    control.hide_secrets(Mask(["hunter22"]))
    control.take_output(OUT, 0, b"a hunter22 hun")
    control.finish_output()
    assert passed == [(OUT, 0, b"a *** ", 11), (OUT, 11, b"hun", 3)]


def test_a_run_that_is_followed_from_its_middle_gets_masked_output():
    passed: list[tuple[Any, ...]] = []
    control = RunControl()
    control.hide_secrets(Mask(["hunter22"]))
    control.follow(lambda *piece: passed.append(piece))
    control.take_output(OUT, 0, b"a hunter22")
    assert passed == [(OUT, 0, b"a ***", 10)]


@pytest.mark.parametrize("cut", range(1, 8))
def test_parts_of_a_value_are_hidden_where_output_is_missing(cut: int):
    value = b"hunter22"
    passed: list[tuple[Any, ...]] = []
    mask = Mask([value.decode()]).positioned(lambda *piece: passed.append(piece))
    mask(OUT, 0, b"a " + value[:cut])
    mask(OUT, 50, value[cut:][:1])  # the output after a gap may arrive in small pieces
    mask(OUT, 51, value[cut:][1:] + b" bcdefghi")
    mask.flush()
    rest = 8 - cut
    assert passed == [
        (OUT, 0, b"a ", 2),
        (OUT, 2, b"***", cut),
        (OUT, 50, b"***", rest),
        (OUT, 50 + rest, b" bcdefghi", 9),
    ]


@given(
    text=st.text(alphabet="hunter2 ", max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    missing=st.sets(st.integers(0, 8)),
)
def test_pieces_with_gaps_are_in_order_and_have_no_value(text: str, cuts: list[int], missing: set[int]):
    value = "hunter22"
    data = f"{text}{value}{text}{value}".encode()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    passed: list[tuple[Any, ...]] = []
    mask = Mask([value]).positioned(lambda *piece: passed.append(piece))
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        if start < end and number not in missing:
            mask(OUT, start, data[start:end])
    mask.flush()
    at = 0
    for _, position, piece, printed in passed:
        assert position >= at
        at = position + printed
        assert value.encode() not in piece
        if b"***" not in piece:
            assert piece == data[position : position + printed]
    assert at <= len(data)


def test_a_run_that_nobody_follows_has_no_receiver():
    control = RunControl()
    control.hide_secrets(Mask(["hunter22"]))
    assert control.on_output is None
    control.finish_output()


def test_nothing_that_is_printed_of_a_mask_has_a_value():
    assert "hunter22" not in repr(Mask(["hunter22"]))
    assert "hunter22" not in repr(RunControl(mask=Mask(["hunter22"])))
