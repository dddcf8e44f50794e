"""Hostile outputs through the whole worker: their keys, their links, and a result that stays small."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from support.checks.outputs import COUNT, NAMED_REFUSALS, NAMES, REFUSED_NAMES, percent_encoded

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.agents.worker import WorkerUnderTest

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

MAX_RESULT_BYTES = 512 * 1024
LEAVE = """
import json, os, sys
os.chdir('/output')
for name in map(bytes.fromhex, json.load(sys.stdin)):
    os.makedirs(os.path.dirname(name) or b'.', exist_ok=True)
    open(name, 'wb').write(name)
"""


def opened(worker: WorkerUnderTest, link: str) -> tuple[int, bytes, dict[str, str]]:
    """What the store answers to that link, character for character as it stands: no client mends it."""
    start = worker.stack.endpoint_url
    base = urlsplit(start)
    assert link.startswith(f"{start}/")
    connection = http.client.HTTPConnection(str(base.hostname), int(base.port or 80))
    try:
        # The bucket is private; moto wants a caller, and looks no closer.
        connection.request("GET", link.removeprefix(start), headers={"Authorization": "AWS anyone:any"})
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


async def leave(worker: WorkerUnderTest, names: list[bytes]) -> dict[str, Any]:
    key = await worker.upload({"main.py": LEAVE})
    return await worker.run(s3Key=key, input=[name.hex() for name in names])


async def test_every_name_has_its_key_and_a_link_that_opens(
    worker: WorkerUnderTest, record_property: Callable[..., None]
):
    result = await leave(worker, [name.encode() for name in NAMES] + REFUSED_NAMES)
    assert result["status"] == "SUCCESS", result
    bucket, prefix = worker.stack.data_bucket, f"outputs/{result['requestId']}/"
    base = f"{worker.stack.endpoint_url}/{bucket}/{prefix}"
    expected = {base + percent_encoded(name.encode()): name.encode() for name in NAMES}
    assert set(result["outputFiles"]) == set(expected)
    assert {error["path"] for error in result["outputErrors"]} == {
        name.decode(errors="replace") for name in REFUSED_NAMES
    }
    assert set(await worker.stack.buckets.keys(bucket, prefix)) == {prefix + name for name in NAMES}
    for link, content in expected.items():
        status, body, _ = await asyncio.to_thread(opened, worker, link)
        assert (status, body) == (200, content), link
    record_property("tried", ["outputs", len(NAMES) + len(REFUSED_NAMES)])


async def test_browsers_save_a_page_and_show_a_picture(worker: WorkerUnderTest):
    result = await leave(worker, [b"page.html", b"drawing.svg", b"picture.png", "data:가/나,x".encode()])
    assert result["outputErrors"] == []
    said = {}
    for link in result["outputFiles"]:
        _, _, headers = await asyncio.to_thread(opened, worker, link)
        said[link.rpartition("/")[2]] = (headers["content-type"], headers.get("content-disposition"))
    assert said == {
        "page.html": ("text/html; charset=utf-8", "attachment"),
        "drawing.svg": ("image/svg+xml", "attachment"),
        "picture.png": ("image/png", None),
        percent_encoded("나,x".encode()): ("application/octet-stream", "attachment"),
    }


async def test_the_largest_number_of_files_gives_a_small_result(
    worker: WorkerUnderTest, record_property: Callable[..., None]
):
    source = "for n in range(100_000): open(f'/output/{n:06}', 'w').close()"  # MAX_INODES ends it
    key = await worker.upload({"main.py": source})
    result = await worker.run(s3Key=key, memoryMb=256)
    assert (result["status"], result["errorType"]) == ("FAILED", "DISK_LIMIT")
    assert [link.rpartition("/")[2] for link in result["outputFiles"]] == [f"{n:06}" for n in range(100)]
    named = [{"path": f"{number:06}", "reason": COUNT} for number in range(100, 200)]
    assert result["outputErrors"][:-1] == named
    assert result["outputErrors"][-1]["reason"].endswith(" more files were not uploaded")
    assert len(await stored(worker, result)) < 64 * 1024
    record_property("tried", ["outputs", 16_384])


async def test_a_megabyte_of_refused_names_displaces_no_link(
    worker: WorkerUnderTest, record_property: Callable[..., None]
):
    """A control character takes six bytes in JSON, and a refused path has up to a thousand."""
    source = (
        "import os\n"
        "open('/output/honest', 'w').write('honest')\n"
        "folder = '/output/' + ('\\1' * 255 + '/') * 3\n"
        "os.makedirs(folder)\n"
        "for n in range(50): open(folder + '\\1' * 200 + str(n), 'w').close()\n"
        "for n in range(200): os.symlink('x', folder + '\\2' * 200 + str(n))\n"
    )
    key = await worker.upload({"main.py": source})
    result = await worker.run(s3Key=key)
    assert result["status"] == "SUCCESS", result
    assert [link.rpartition("/")[2] for link in result["outputFiles"]] == ["honest"]
    assert 0 < len(result["outputErrors"]) < 2 * NAMED_REFUSALS
    assert "do not fit into the result" in result["outputErrors"][-1]["reason"]
    assert len(await stored(worker, result)) <= MAX_RESULT_BYTES
    record_property("tried", ["outputs", 251])


async def stored(worker: WorkerUnderTest, result: dict[str, Any]) -> bytes:
    """The result's document, as Redis holds it."""
    document = await worker.redis.get(f"job:{result['requestId']}")
    assert isinstance(document, bytes)
    assert json.loads(document) == result
    return document
