from __future__ import annotations

import io
import json
import socket
import zipfile
from typing import TYPE_CHECKING

import pytest

from nanoagent import sender
from nanoagent.errors import ConfigError, SinkError
from nanoagent.sender import pack
from support.fakes import make_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_becomes_a_zip_of_its_files_at_the_root(tmp_path: Path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "main.py").write_text("print(1)")
    (tmp_path / "lib/util.py").write_text("x = 1")
    with zipfile.ZipFile(io.BytesIO(pack(tmp_path))) as archive:
        assert archive.namelist() == ["lib/util.py", "main.py"]
        assert archive.read("main.py") == b"print(1)"


def test_the_same_files_are_the_same_zip_whenever_they_were_written(tmp_path: Path):
    (tmp_path / "main.py").write_text("print(1)")
    first = pack(tmp_path)
    (tmp_path / "main.py").unlink()
    (tmp_path / "main.py").write_text("print(1)")
    assert pack(tmp_path) == first


def test_a_fifo_queue_is_told_what_it_wants_and_another_nothing():
    assert sender.fifo_fields("https://sqs/1/jobs", "r1") == {}
    fields = sender.fifo_fields("https://sqs/1/jobs.fifo", "r1")
    assert fields == {"MessageGroupId": "r1", "MessageDeduplicationId": "r1"}


def test_what_is_executable_stays_so(tmp_path: Path):
    (tmp_path / "tool").write_text("#!/bin/sh")
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "data").write_text("x")
    (tmp_path / "data").chmod(0o644)
    with zipfile.ZipFile(io.BytesIO(pack(tmp_path))) as archive:
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
    assert modes == {"tool": 0o755, "data": 0o644}


def test_a_zip_is_sent_as_it_is(tmp_path: Path):
    file = tmp_path / "code.zip"
    file.write_bytes(b"whatever it is")
    assert pack(file) == b"whatever it is"


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_where_there_is_no_code_the_path_is_named(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=name):
        pack(tmp_path / name)


async def test_without_redis_the_address_is_named_and_nothing_is_sent(tmp_path: Path):
    (tmp_path / "main.py").write_text("print(1)")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        port = unused.getsockname()[1]
        settings = make_settings(redis_host="127.0.0.1", redis_port=port)
        with pytest.raises(SinkError, match=rf"Redis at 127\.0\.0\.1:{port} failed"):
            await sender.send(settings, tmp_path, {"requestId": "r1", "functionId": "f"}, 1)


def test_a_result_gives_a_terminal_no_orders_and_stays_the_same():
    result = {"stdout": "한 \x1b[2J \x9b2J \x7f \u202e \ud800 \U000e0001 \u2028 \n", "exitCode": 0}

    text = sender.shown(result)

    assert all(line.isprintable() for line in text.split("\n"))
    assert "한" in text
    assert json.loads(text) == result
