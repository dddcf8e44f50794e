"""`nanoagent pool`: the state of the pool of a running worker."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from nanoagent import cli
from nanoagent.telemetry import pool_report
from nanoagent.telemetry.pool_report import WorkerNotReached
from nanoagent.telemetry.status import Health, StatusServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STATE = {
    "hot": 12,
    "generic": 1,
    "genericWanted": 3,
    "busy": 2,
    "starting": 1,
    "rebound": 4,
    "recycled": 7,
    "notRecycled": {"residue": 1},
    "starts": {"hot": 90, "warm": 8, "cold": 2},
    "coldShare": 0.02,
    "retired": {"evicted": 1},
    "lastRetired": [{"reason": "evicted", "secondsAgo": 3.4, "idleSeconds": 61.0, "runs": 5, "memoryMb": 18}],
}
IDLE = STATE | {"starts": {"hot": 0, "warm": 0, "cold": 0}, "coldShare": None, "lastRetired": []}
DOCUMENT: dict[str, Any] = {
    "memoryMb": {"limit": 22_057, "charged": 1234, "held": 1180.2, "wanted": 0},
    "containers": {"limit": 5000, "running": 15, "creating": 1, "removing": 2},
    "runtimes": {"python": STATE, "go": IDLE},
}


@asynccontextmanager
async def worker(*, has_pool: bool = True) -> AsyncIterator[str]:
    """A status server; yields its URL."""
    server = StatusServer(Health(), CollectorRegistry(), "127.0.0.1", 0)
    if has_pool:
        server.watch_pool(lambda: DOCUMENT)
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"METRICS_HOST": "0.0.0.0", "METRICS_PORT": "9100"}, "http://127.0.0.1:9100"),
        ({"METRICS_HOST": "::"}, "http://[::1]:8000"),
        ({"METRICS_HOST": "fe80::1"}, "http://[fe80::1]:8000"),
        ({"METRICS_HOST": "10.0.0.5", "METRICS_PORT": ""}, "http://10.0.0.5:8000"),
    ],
)
def test_the_worker_of_this_machine_is_asked_by_default(variables, url):
    assert pool_report.default_url(variables) == url


async def test_the_document_is_that_of_the_worker():
    async with worker() as url:
        assert await asyncio.to_thread(pool_report.fetch, url) == DOCUMENT
        assert await asyncio.to_thread(pool_report.fetch, f"{url}/") == DOCUMENT


async def test_a_worker_whose_pool_has_not_started_says_so():
    async with worker(has_pool=False) as url:
        with pytest.raises(WorkerNotReached, match="Service Unavailable"):
            await asyncio.to_thread(pool_report.fetch, url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:9", "nonsense", "http://["])
def test_without_a_worker_the_remedy_is_given(url, capsys):
    assert cli.main(["pool", "--url", url]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"nanoagent: no worker answers at {url}/pool (")
    assert "set --url" in said
    assert len(said.splitlines()) == 1


async def test_the_command_prints_the_tables(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # nothing is cut
    async with worker() as url:
        assert await asyncio.to_thread(cli.main, ["pool", "--url", url]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "memory: 1,234 of 22,057 MiB charged, 1,180 MiB held"
    assert lines[1] == "containers: 15 of at most 5,000, 1 being created, 2 being removed"
    assert "python 12 1 of 3 2 1 90 / 8 / 2 2.0% 4 7" in lines
    assert "go 12 1 of 3 2 1 0 / 0 / 0 4 7" in lines
    assert "3 s ago python evicted 61 s 5 18" in lines


async def test_the_command_prints_json_for_programs(capsys):
    async with worker() as url:
        assert await asyncio.to_thread(cli.main, ["pool", "--json", "--url", url]) == 0
    assert json.loads(capsys.readouterr().out) == DOCUMENT
