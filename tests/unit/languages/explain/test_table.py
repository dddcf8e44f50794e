"""What a result advises, beyond the outcome table."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from nanoagent.languages.explain import Facts, TreeFacts, advice_for, explain
from nanoagent.languages.recipes import RECIPES
from nanoagent.model import payload
from nanoagent.model.job import NetworkPolicy, Runtime
from nanoagent.model.result import OUTCOMES, ErrorType

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
    hint = advice_for(Facts(runtime=runtime, error_type=error_type, stdout_is_empty=True))[1]
    assert hint is not None
    table = OUTCOMES[error_type].hint
    for locale, lost in (("en", "If the program printed something, the output was"), ("ko", "출력을 했다면")):
        said = hint.in_(locale)
        assert lost in said
        assert FLUSHING[runtime] in said
        assert said.startswith("" if table is None else table.in_(locale))


@pytest.mark.parametrize("error_type", sorted(set(ErrorType)))
def test_a_program_that_has_printed_something_has_the_tables_hint(error_type):
    assert (
        advice_for(Facts(runtime=Runtime.PYTHON, error_type=error_type, stderr="x"))[1]
        == OUTCOMES[error_type].hint
    )


@pytest.mark.parametrize("error_type", sorted(set(ErrorType) - set(KILLED)))
def test_a_program_that_ended_itself_has_lost_nothing(error_type):
    assert (
        advice_for(Facts(runtime=Runtime.PYTHON, error_type=error_type, stdout_is_empty=True, stderr="x"))[1]
        == OUTCOMES[error_type].hint
    )


def test_a_program_that_ended_well_has_no_hint():
    assert advice_for(Facts(runtime=Runtime.PYTHON, error_type=None)) == (None, None)


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
    hint = payload.left_out_hint(len(LARGE), stderr, message, source)
    assert hint is not None
    for said in (hint.en, hint.ko):
        assert str(len(LARGE)) in said
        assert "131063" in said
        assert "PAYLOAD_FILE" in said


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
    assert payload.left_out_hint(len(LARGE), stderr, message, source) is None


def known(runtime: Runtime, message: str, stderr: str = "x", **changes: Any) -> str | None:
    """The English hint of a program's own failure; None if no rule applies."""
    error_type = changes.pop("error_type", ErrorType.USER_ERROR)
    facts = Facts(runtime=runtime, error_type=error_type, message=message, stderr=stderr, **changes)
    hint = explain(facts)
    if hint is None:
        return None
    assert hint.text.en
    assert re.search("[가-힣]", hint.text.ko)
    return hint.text.en


def test_a_full_heap_of_v8_is_told_apart_from_other_signals():
    message = "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory"
    hint = known(Runtime.NODEJS, message, error_type=ErrorType.SIGNAL)
    assert hint is not None
    assert hint.startswith("The heap of V8 was full.")
    assert known(Runtime.CPP, message, error_type=ErrorType.SIGNAL) is None


# --- common failures; the messages are recorded from the images


@pytest.mark.parametrize(
    ("runtime", "message", "said"),
    [
        (
            Runtime.PYTHON,
            "ModuleNotFoundError: No module named 'flask.views'",
            "pip install --target . flask in",
        ),
        (Runtime.PYTHON, "ModuleNotFoundError: No module named 'cv2'", ". opencv-python-headless in"),
        (Runtime.NODEJS, "Error: Cannot find module 'lodash/fp'", "Run npm install lodash in"),
        (
            Runtime.NODEJS,
            "Error [ERR_MODULE_NOT_FOUND]: Cannot find package '@a/b' imported from /work/index.mjs",
            "npm install @a/b in",
        ),
        (Runtime.NODEJS, "Error: Cannot find module './utils'", "The code does not have the file utils"),
        (
            Runtime.NODEJS,
            "Error [ERR_MODULE_NOT_FOUND]: Cannot find module '/work/utils' imported from /work/index.js",
            "The code does not have the file utils",
        ),
        (
            Runtime.PYTHON,
            "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>",
            "its network is ai",
        ),
        (Runtime.NODEJS, "Error: getaddrinfo EAI_AGAIN example.com", "NETWORK=egress"),
        (Runtime.GO, 'panic: Get "http://a.example/": dial tcp: lookup a.example: no such host', "NETWORK="),
        (Runtime.CPP, "OSError: Network is unreachable", "the job's field network"),
        (Runtime.PYTHON, "OSError: [Errno 24] Too many open files: '/dev/null'", "MAX_OPEN_FILES=1024"),
        (Runtime.NODEJS, "Error: EMFILE: too many open files, open '/dev/null'", "MAX_OPEN_FILES=1024"),
        (Runtime.GO, "panic: open /dev/null: too many open files", "MAX_OPEN_FILES=1024"),
        (
            Runtime.PYTHON,
            "SyntaxError: Non-UTF-8 code starting with '\\xb0' in file /work/main.py on line 1",
            "Save it as UTF-8",
        ),
        (Runtime.PYTHON, "SyntaxError: source code cannot contain null bytes", "Save it as UTF-8"),
    ],
)
def test_a_common_failure_has_its_own_advice(runtime: Runtime, message: str, said: str):
    hint = known(runtime, message)
    assert hint is not None
    assert said in hint


def test_the_cause_of_a_failed_fetch_is_found_in_stderr():
    stderr = "TypeError: fetch failed\n    at x {\n  [cause]: Error: getaddrinfo EAI_AGAIN a.example\n}"
    hint = known(Runtime.NODEJS, "TypeError: fetch failed", stderr, network=NetworkPolicy.NONE)
    assert hint is not None
    assert "its network is none" in hint


REFUSED = (
    'Traceback (most recent call last):\n  File "/work/main.py", line 3, in <module>\n'
    "ConnectionRefusedError: [Errno 111] Connection refused\n"
)


@pytest.mark.parametrize(
    ("between", "is_cause"),
    [
        ("\nThe above exception was the direct cause of the following exception:\n\n", True),
        ("\nDuring handling of the above exception, another exception occurred:\n\n", True),
        ("", False),
        ("the cache is off\n", False),
    ],
)
def test_only_a_chained_traceback_can_have_the_cause(between: str, is_cause: bool):  # noqa: FBT001
    last = 'Traceback (most recent call last):\n  File "/work/main.py", line 9, in <module>\nValueError: x\n'
    assert (known(Runtime.PYTHON, "ValueError: x", REFUSED + between + last) is not None) == is_cause


def test_an_error_that_was_logged_before_the_last_one_is_not_the_cause():
    stderr = (
        "no metrics: connect ECONNREFUSED 127.0.0.1:9\n/work/index.js:3\n  x\n  ^\n\nTypeError: y\n    at z\n"
    )
    assert known(Runtime.NODEJS, "TypeError: y", stderr) is None


def test_the_error_of_a_command_that_the_program_has_started_is_above_its_own():
    stderr = "/usr/bin/python3: No module named pip\n" + REFUSED.replace("ConnectionRefusedError", "x")
    message = "subprocess.CalledProcessError: Command '['pip']' returned non-zero exit status 1."
    assert "has no pip" in (known(Runtime.PYTHON, message, stderr) or "")
    assert known(Runtime.PYTHON, "ValueError: x", stderr + "Traceback (most recent call last):\n") is None


def test_with_the_internet_an_unknown_host_is_a_matter_of_its_name():
    message = "socket.gaierror: [Errno -2] Name or service not known"
    hint = known(Runtime.PYTHON, message, network=NetworkPolicy.EGRESS)
    assert hint is not None
    assert "EGRESS_ALLOW" in hint


def test_a_token_is_a_matter_of_encoding_only_where_bytes_are_no_utf8():
    message = "SyntaxError: Invalid or unexpected token"
    assert known(Runtime.NODEJS, message, "/work/index.js:1\n\ufffd\ufffdc\n") is not None
    assert known(Runtime.NODEJS, message, "/work/index.js:1\na b\n") is None


@pytest.mark.parametrize("runtime", Runtime)
@pytest.mark.parametrize("message", ["ValueError: x", "", "import os", "EMFILE", "Cannot find module"])
def test_another_failure_has_no_hint(runtime: Runtime, message: str):
    assert known(runtime, message) is None


def test_a_handled_import_error_that_was_logged_is_not_the_cause():
    stderr = "ModuleNotFoundError: No module named 'orjson'\nValueError: x"
    assert known(Runtime.PYTHON, "ValueError: x", stderr) is None


def test_a_program_without_stderr_is_not_told_to_read_it():
    hint = known(Runtime.PYTHON, "the program exited with 3", " \n", exit_code=3)
    assert hint is not None
    assert "Read stderr" not in hint
    assert "exit code 3 and printed nothing to stderr" in hint


@pytest.mark.parametrize("runtime", Runtime)
def test_hostile_errors_take_linear_time(runtime: Runtime):
    pieces = [
        "Cannot find module '" + "a" * 300,
        "No module named '" + "a." * 300,
        "ModuleNotFoundError: No module named '",
        "too many open file",
        "Failed to resolve",
        "\n\ufffd",
    ]
    begun = time.process_time()
    for piece in pieces:
        text = piece * (1024 * 1024 // len(piece))
        known(runtime, text, text)
    assert time.process_time() - begun < 1


# --- code for another platform


@pytest.mark.parametrize(
    ("runtime", "source", "name"),
    [
        (
            Runtime.PYTHON,
            "import os\n\ndef lambda_handler(event, context):\n    pass\n",
            "lambda_handler",
        ),
        (Runtime.PYTHON, "async def handler(event, context):\n    return 1\n", "handler"),
        (Runtime.NODEJS, "exports.handler = async (event) => 1;", "handler"),
        (Runtime.NODEJS, "module.exports.handler = async function (event) {}", "handler"),
        (Runtime.NODEJS, "async function handler(e) {}\nmodule.exports = { handler };", "handler"),
        (Runtime.NODEJS, "export const handler = async (event) => 1;", "handler"),
        (Runtime.NODEJS, "export async function handler(event) {}", "handler"),
    ],
)
def test_a_handler_that_nothing_calls_is_told_of(runtime: Runtime, source: str, name: str):
    hint = explain(Facts(runtime=runtime, error_type=None, tree=TreeFacts(source=source)))
    assert hint is not None
    for said in (hint.text.en, hint.text.ko):
        assert name in said
        assert "PAYLOAD" in said
        assert RECIPES[runtime].entry in said


@pytest.mark.parametrize(
    ("runtime", "source"),
    [
        (Runtime.PYTHON, "x = 1"),
        (Runtime.PYTHON, "def lambda_handler(e, c): ...\nlambda_handler({}, None)"),
        (Runtime.PYTHON, "class A:\n    def handler(self): ..."),
        (Runtime.NODEJS, "exports.handler = async (e) => 1;\nexports.handler({});"),
        (Runtime.CPP, "int handler() { return 1; }"),
        (Runtime.GO, "func handler() {}"),
    ],
)
def test_other_silent_programs_have_no_hint(runtime: Runtime, source: str):
    assert explain(Facts(runtime=runtime, error_type=None, tree=TreeFacts(source=source))) is None
