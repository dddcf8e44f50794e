"""What is written down of hostile requests, and what it takes."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from nanoagent.ai import calls
from nanoagent.ai.recording import Recording
from nanoagent.ai.routes import ROUTES

if TYPE_CHECKING:
    from pathlib import Path

CHAT = ROUTES["/api/chat"]


def recorded(file: Path, body: bytes) -> object:
    exchange = Recording(file).start(calls.read(CHAT, body, "m"))
    exchange.set_head(200, "application/json")
    exchange.add(b"{}")
    exchange.close((1, 2), 0.5, complete=True)
    (line,) = file.read_bytes().splitlines()
    return json.loads(line)["request"]


def test_a_request_of_many_lines_is_one_line_and_its_numbers_are_as_they_came(tmp_path):
    body = b'{\n "model": "m",\r\n "options": {"seed": 1.50, "x": "a\\nb"}\n}'
    assert recorded(tmp_path / "ai.jsonl", body) == json.loads(body)
    assert b"1.50" in (tmp_path / "ai.jsonl").read_bytes()


@pytest.mark.parametrize("value", [b"[" * 900 + b"]" * 900, b'"\xff"', b'"' + "é\u2028".encode() + b'"'])
def test_whatever_json_a_request_has_it_is_written_down(tmp_path, value):
    body = b'{"model":"m","template":' + value + b"}"
    written = recorded(tmp_path / "ai.jsonl", body)
    text = written if isinstance(written, str) else json.dumps(written, separators=(",", ":"))
    assert json.loads(body.decode(errors="replace")) == json.loads(text)


def test_a_request_is_held_as_text_and_not_as_objects(tmp_path):
    body = b'{"model":"m","context":[' + b",".join([b"{}"] * 49_000) + b"]}"
    call = calls.read(CHAT, body, "m")
    tracemalloc.start()
    try:
        exchange = Recording(tmp_path / "ai.jsonl").start(call)
        assert tracemalloc.get_traced_memory()[0] < 2 * len(body)
        exchange.close((0, 0), 0, complete=False)
    finally:
        tracemalloc.stop()
