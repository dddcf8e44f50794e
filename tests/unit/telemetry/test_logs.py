from __future__ import annotations

import ast
import io
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

import pytest
import structlog

from nanoagent.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream():
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_time_level_event_and_fields(stream):
    logs.configure("json", "INFO", stream=stream)
    structlog.get_logger().bind(worker_id="w1").info("job done", request_id="r1", ms=3)
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert str(line.pop("timestamp")).endswith("Z")
    assert line == {"level": "info", "event": "job done", "worker_id": "w1", "request_id": "r1", "ms": 3}


def test_what_is_bound_to_the_context_is_on_every_line_of_ours_and_of_libraries(stream):
    logs.configure("json", "INFO", stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("ours")
        logging.getLogger("library").warning("theirs")
    structlog.get_logger().info("after")
    assert [line.get("request_id") for line in lines(stream)] == ["r1", "r1", None]


def test_lines_below_the_level_are_not_shown(stream):
    logs.configure("json", "WARNING", stream=stream)
    structlog.get_logger().info("hidden")
    structlog.get_logger().warning("shown")
    assert [line["event"] for line in lines(stream)] == ["shown"]


def test_libraries_are_heard_from_warning_up_even_when_we_are_at_debug(stream):
    logs.configure("json", "DEBUG", stream=stream)
    logging.getLogger("botocore").info("hidden")
    logging.getLogger("botocore").warning("slow %s", "down")
    structlog.get_logger().debug("ours")
    first, second = lines(stream)
    assert (first["event"], first["level"], first["logger"]) == ("slow down", "warning", "botocore")
    assert second["event"] == "ours"


def test_auto_is_text_on_a_terminal_and_json_elsewhere(stream):
    logs.configure("auto", "INFO", stream=stream)
    structlog.get_logger().info("done")
    assert lines(stream)[0]["event"] == "done"

    terminal = Terminal()
    logs.configure("auto", "INFO", stream=terminal)
    structlog.get_logger().info("done", request_id="r1")
    assert "done" in terminal.getvalue()
    assert "{" not in terminal.getvalue()
    assert len(stream.getvalue().splitlines()) == 1


def test_text_that_is_no_terminal_has_no_colours(stream):
    logs.configure("text", "INFO", stream=stream)
    structlog.get_logger().info("done", request_id="r1")
    assert "request_id=r1" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def fail_to_connect(url: str):
    raise ConnectionError(url)


def raise_with_a_local():
    password_in_a_local = "hunter2"
    raise ValueError(f"of length {len(password_in_a_local)}\nsecond line")


@pytest.mark.parametrize("logger", [structlog.get_logger(), logging.getLogger("library")])
def test_an_exception_is_one_json_line_with_its_cause_and_without_variables(stream, logger):
    logs.configure("json", "INFO", stream=stream)
    try:
        try:
            raise_with_a_local()
        except ValueError as exc:
            raise RuntimeError("outer") from exc
    except RuntimeError:
        logger.exception("it failed")
    (line,) = lines(stream)
    assert line["event"] == "it failed"
    exceptions = line["exception"]
    assert isinstance(exceptions, list)
    assert [entry["exc_type"] for entry in exceptions] == ["RuntimeError", "ValueError"]
    assert exceptions[1]["frames"][-1]["name"] == "raise_with_a_local"
    assert "hunter2" not in stream.getvalue()


def test_an_exception_in_text_shows_no_variables(stream):
    logs.configure("text", "INFO", stream=stream)
    try:
        raise_with_a_local()
    except ValueError:
        structlog.get_logger().exception("it failed")
    assert "ValueError: of length 7" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize(
    "name",
    ["redis_password", "aws_secret_access_key", "OPENAI_API_KEY", "apiKey", "session_token", "Authorization"],
)
def test_a_field_with_a_secrets_name_is_hidden_at_any_depth(stream, log_format, name):
    logs.configure(log_format, "INFO", stream=stream)
    structlog.get_logger().info("start", **{name: "hunter2", "settings": {"redis": {name: "hunter2"}}})
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("***") == 2


def test_fields_that_only_sound_like_secrets_are_shown(stream):
    logs.configure("json", "INFO", stream=stream)
    fields = {
        "llm_token_count": 5,
        "llmTokenCount": 5,
        "tokens": 5,
        "s3_key": "a.zip",
        "redis_password": None,
    }
    structlog.get_logger().info("done", **fields)
    assert fields.items() <= lines(stream)[0].items()


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@cache:6379/0",
        "https://hunter2@example.org/x",
        "https://user:p@hunter2@example.org/x",
        "https://b.example.org/k?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2&X-Amz-Expires=60",
    ],
)
def test_credentials_inside_urls_are_hidden_wherever_they_stand(stream, log_format, url):
    logs.configure(log_format, "INFO", stream=stream)
    structlog.get_logger().info(f"asking {url}", url=url)
    try:
        fail_to_connect(url)
    except ConnectionError:
        logging.getLogger("library").exception("cannot reach %s", url)
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("***") >= 4
    assert "example.org" in stream.getvalue() or "cache:6379" in stream.getvalue()


AWKWARD = 'pass"wörd/hunter2 &\\x'


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize(
    "said",
    [
        # What Redis answers where AUTH is no command, as from a proxy that does not have it.
        f"ERR unknown command 'AUTH', with args beginning with: 'worker' '{AWKWARD}'",
        f"wrong password: {AWKWARD!r}",
        json.dumps({"said": AWKWARD}),
        json.dumps({"said": AWKWARD}, ensure_ascii=False),
        f"https://example.org/?key={quote(AWKWARD)}&other={quote_plus(AWKWARD)}",
    ],
)
def test_a_secret_of_our_own_is_hidden_by_its_value_however_it_is_written(stream, log_format, said):
    logs.configure(log_format, "INFO", stream=stream)
    logs.hide(["other-secret", AWKWARD])
    structlog.get_logger().info(f"asked: {said}", said=said, deep={"list": [said]})
    try:
        fail_to_connect(said)
    except ConnectionError:
        logging.getLogger("library").exception("cannot: %s", said)
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("***") >= 5
    if log_format == "json":
        assert len(lines(stream)) == 2


@pytest.mark.parametrize(
    "secret", ['"quoted-secret', "\\slashed-secret", "\\\\server-secret", "geheimniß", "ab'cdefgh"]
)
def test_the_search_for_secrets_is_fast_for_any_text(secret):
    """The square of a megabyte of backslashes is hours, and the whole worker would wait."""
    logs.hide([secret])
    try:
        (pattern,) = logs._known_values
        assert not re.search(r"[*+]", re.sub(r"\\.", "", pattern.pattern))
    finally:
        logs.hide([])


@pytest.mark.parametrize(
    "said",
    [
        "AKIAHUNTER2HUNTER2AA is no key",
        "user ASIAHUNTER2HUNTER2AA",
        "'SecretAccessKey': 'hunter2'",
        '"aws_session_token" : "hunter2"',
        "password=hunter2&user=x",
        "Passwd: hunter2",
        "redis://user:hunter2@host/0",
        "GET /?X-Amz-Signature=hunter2",
        # Letters that a search without regard to case takes for s and k.
        "PA\u017f\u017fWORD=hunter2",
        "se\u017fsion_to\u212aen=hunter2",
    ],
)
def test_what_is_written_as_a_credential_is_hidden_whoever_it_belongs_to(stream, said):
    logs.configure("json", "INFO", stream=stream)
    structlog.get_logger().info(said)
    (line,) = lines(stream)
    assert "hunter2" not in str(line["event"]).lower()
    assert "***" in str(line["event"])


@pytest.mark.parametrize(
    "said",
    [
        "it refuses the user or the password: set REDIS_USERNAME and REDIS_PASSWORD",
        "AWS_SECRET_ACCESS_KEY: is not set",
        "REDIS_PASSWORD: should be set, as REDIS_USERNAME is",
        "no password: any client may read and forge results",
        "wrong password: the server refuses it.",
        "invalid session token: expired",
        "Password: required",
    ],
)
def test_a_sentence_about_a_secret_keeps_its_words(said: str):
    assert logs.without_secrets(said) == said


@pytest.mark.parametrize(
    "said",
    [
        "password: set-hunter2",
        "password: the.hunter2",
        'password: "set"hunter2',
        "password=set hunter2",
        "REDIS_PASSWORD: hunter2 is wrong",
        "'password': 'set'",
        "aws_session_token: isHunter2",
    ],
)
def test_a_secret_that_begins_like_a_word_is_hidden_all_the_same(said: str):
    shown = logs.without_secrets(said)
    assert "***" in shown
    assert shown != said


def literals() -> Iterator[tuple[str, str]]:
    """Every text in the package's source, and the file it stands in; `…` where something is filled in."""
    for path in sorted(Path(logs.__file__).parents[1].rglob("*.py")):
        if path.name in {"logs.py", "sigv4.py"}:  # patterns of secrets, and the header with a signature
            continue
        tree = ast.parse(path.read_text())
        parts = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield path.name, "".join(str(getattr(part, "value", "…")) for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                yield path.name, node.value


def test_no_message_of_this_package_is_taken_for_a_secret():
    texts = list(literals())
    assert len(texts) > 5000
    assert [(name, text) for name, text in texts if logs.without_secrets(text) != text] == []


def test_a_secret_that_would_be_a_part_of_words_is_left_to_the_other_ways(stream):
    logs.configure("json", "INFO", stream=stream)
    logs.hide(["red", ""])
    structlog.get_logger().info("rendered", redis_password="red")
    assert lines(stream)[0].items() >= {"event": "rendered", "redis_password": "***"}.items()


def test_a_url_without_credentials_is_shown_whole(stream):
    logs.configure("json", "INFO", stream=stream)
    url = "https://s3.example.org/b/outputs/r1/a@2x.png"
    structlog.get_logger().info("uploaded", url=url)
    assert lines(stream)[0]["url"] == url


def test_a_value_that_json_does_not_know_is_shown_by_its_repr(stream):
    logs.configure("json", "INFO", stream=stream)
    structlog.get_logger().info("odd", value=b"\xff")
    assert lines(stream)[0]["value"] == repr(b"\xff")


def test_configuring_again_replaces_what_was_before(stream):
    logs.configure("json", "INFO", stream=io.StringIO())
    logs.configure("json", "INFO", stream=stream)
    logging.getLogger("library").warning("once")
    structlog.get_logger().info("once")
    assert len(lines(stream)) == 2


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\x9b2Jb", "a\nb", "a\u202eb", "a\u2028b", "a\ab", "\ud800"])
def test_untrusted_text_cannot_control_a_terminal_or_add_a_line(stream, text):
    logs.configure("text", "INFO", stream=stream)
    structlog.get_logger().info(text, key=text)
    (line,) = stream.getvalue().split("\n")[:-1]
    assert line.isprintable()
    assert line.count(text.encode("unicode_escape").decode()) == 2


def test_a_traceback_at_a_terminal_keeps_its_lines(stream):
    logs.configure("text", "INFO", stream=stream)
    try:
        int("a\nb")
    except ValueError:
        structlog.get_logger().exception("failed", stack_info=True)
    assert "\n  Traceback (most recent call last):\n" in stream.getvalue()
    assert "\n  Stack (most recent call last):\n" in stream.getvalue()


def fail_with(error: Exception, cause: Exception | None = None):
    raise error from cause


ORDERS = "a\x1b[2J\x7f\x9b2J\u202e\u2066\u2028\r\ud800\n2026-01-01 [info     ] forged"


@pytest.mark.parametrize("logger", [structlog.get_logger(), logging.getLogger("library")])
def test_the_message_of_an_exception_gives_a_terminal_no_orders_and_forges_no_line(stream, logger):
    logs.configure("text", "INFO", stream=stream)
    try:
        fail_with(RuntimeError(ORDERS), ValueError(ORDERS))
    except RuntimeError:
        logger.exception("failed")
    first, *others = stream.getvalue().removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in (first, *others))
    assert "failed" in first
    assert all(line.startswith("  ") for line in others)
    assert "  RuntimeError: a\\x1b[2J\\x7f\\x9b2J\\u202e\\u2066\\u2028\\r\\ud800" in others


@pytest.mark.parametrize("logger", [structlog.get_logger(), logging.getLogger("library")])
def test_a_line_of_json_gives_a_viewer_no_orders_and_has_the_same_values(stream, logger):
    logs.configure("json", "INFO", stream=stream)
    try:
        fail_with(ValueError(ORDERS))
    except ValueError:
        logger.exception("한글 é " + ORDERS)  # noqa: G003 - the text is to be hostile
    written = stream.getvalue().removesuffix("\n")
    assert written.isprintable()
    line = json.loads(written)
    assert line["event"] == f"한글 é {ORDERS}"
    assert line["exception"][0]["exc_value"] == ORDERS
    assert "한글 é" in written


class Unread(io.StringIO):
    """As a pipe whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_log_that_nobody_reads_any_more_stops_nothing():
    logs.configure("json", "INFO", stream=Unread())
    structlog.get_logger().info("stopping")
