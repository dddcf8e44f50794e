"""What a result advises, beyond the outcome table."""

from __future__ import annotations

import pytest

from nanoagent import hints, payload
from nanoagent.job import Runtime
from nanoagent.result import OUTCOMES, ErrorType

KILLED = [ErrorType.TIMEOUT, ErrorType.OUT_OF_MEMORY, ErrorType.SIGNAL, ErrorType.CANCELLED]
FLUSHING = {
    Runtime.PYTHON: "flush=True",
    Runtime.NODEJS: "fs.writeSync(1",
    Runtime.CPP: "std::endl",
    Runtime.GO: "bufio.Writer",
}


@pytest.mark.parametrize("runtime", Runtime)
@pytest.mark.parametrize("error_type", KILLED)
def test_a_killed_program_that_has_printed_nothing_is_told_how_to_flush(runtime, error_type):
    hint = hints.for_run(runtime, error_type, "")
    assert hint is not None
    table = OUTCOMES[error_type].hint
    for locale, lost in (("en", "is lost"), ("ko", "사라집니다")):
        said = hint.in_(locale)
        assert lost in said
        assert FLUSHING[runtime] in said
        assert said.startswith("" if table is None else table.in_(locale))


@pytest.mark.parametrize("error_type", sorted(set(ErrorType)))
def test_a_program_that_has_printed_something_has_the_tables_hint(error_type):
    assert hints.for_run(Runtime.PYTHON, error_type, "x") == OUTCOMES[error_type].hint


@pytest.mark.parametrize("error_type", sorted(set(ErrorType) - set(KILLED)))
def test_a_program_that_ended_itself_has_lost_nothing(error_type):
    assert hints.for_run(Runtime.PYTHON, error_type, "") == OUTCOMES[error_type].hint


def test_a_program_that_ended_well_has_no_hint():
    assert hints.for_run(Runtime.PYTHON, None, "") is None


# --- PAYLOAD

LARGE = b'"' + b"x" * payload.MAX_BYTES + b'"'
READS = "json.loads(os.environ['PAYLOAD'])"


@pytest.mark.parametrize(
    ("stderr", "message", "source"),
    [
        ("", "KeyError: 'PAYLOAD'", READS),
        ("", "it stopped", READS),
        ("  File main.py\n    json.loads(os.getenv('PAYLOAD'))\n", "TypeError: x", ""),
        ("KeyError: 'PAYLOAD'", "KeyError: 'PAYLOAD'", READS + "os.environ['PAYLOAD_FILE']"),
        ("", "TypeError: the JSON object must be str, bytes or bytearray, not NoneType", ""),
        ("", "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)", ""),
        ("", 'SyntaxError: "undefined" is not valid JSON', ""),
        ("", "SyntaxError: Unexpected end of JSON input", ""),
        ("", "panic: unexpected end of JSON input", ""),
        (
            (
                "terminate called after throwing an instance of 'std::logic_error'\n"
                "  what():  basic_string: construction from null is not valid\n"
            ),
            "the program was killed by SIGABRT",
            "",
        ),
    ],
)
def test_a_program_that_reads_the_payload_that_is_left_out_is_told(stderr, message, source):
    hint = payload.left_out_hint(LARGE, stderr, message, source)
    assert hint is not None
    for said in (hint.en, hint.ko):
        assert str(len(LARGE)) in said
        assert "131063" in said
        assert "PAYLOAD_FILE" in said
    assert payload.left_out_hint(b"{}", stderr, message, source) is None


@pytest.mark.parametrize(
    ("stderr", "message", "source"),
    [
        ("", "ValueError: x", "print(1)"),
        ("", "ValueError: x", "json.load(open(os.environ['PAYLOAD_FILE']))"),
        ("", "ValueError: x", "os.environ.get('PAYLOAD') or open(os.environ['PAYLOAD_FILE']).read()"),
        ("reading PAYLOAD_FILE", "ValueError: MY_PAYLOAD", "PAYLOADS = 1"),
    ],
)
def test_a_program_that_knows_the_file_or_no_payload_is_not_told(stderr, message, source):
    assert payload.left_out_hint(LARGE, stderr, message, source) is None


def test_a_full_heap_of_v8_is_told_apart_from_other_signals():
    message = "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory"
    hint = hints.for_run(Runtime.NODEJS, ErrorType.SIGNAL, "x", message=message)
    assert hint is not None
    assert hint.en.startswith("The heap of V8 was full.")
    assert (
        hints.for_run(Runtime.CPP, ErrorType.SIGNAL, "x", message=message) == OUTCOMES[ErrorType.SIGNAL].hint
    )
