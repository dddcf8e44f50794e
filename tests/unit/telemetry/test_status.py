from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import aiohttp
import pytest

from nanoagent.model.errors import ConfigError
from nanoagent.telemetry import logs, systemd
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health, StatusServer, check_address

LOCALHOST = "127.0.0.1"


@pytest.fixture
def health():
    return Health()


@pytest.fixture
async def server(health):
    server = StatusServer(health, Metrics().registry, LOCALHOST, 0)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def http(server):
    async with aiohttp.ClientSession(f"http://{LOCALHOST}:{server.port}") as session:
        yield session


def test_a_worker_is_not_ready_before_any_part_is(health):
    assert not health.ready


def test_a_worker_is_ready_when_every_part_is(health):
    health.set("redis", True)
    health.set("docker", False, "no answer")
    assert not health.ready
    health.set("docker", True)
    assert health.ready


def test_the_document_names_each_part_and_its_reason(health):
    health.set("redis", True)
    health.set("docker", False, "no answer")
    assert health.document() == {
        "status": "not ready",
        "parts": {"docker": {"ok": False, "reason": "no answer"}, "redis": {"ok": True, "reason": ""}},
    }


async def test_what_a_service_has_quoted_is_shown_without_secrets(http, health):
    logs.hide(["hunter2"])
    try:
        health.set("redis", False, "ERR unknown command 'AUTH', with args beginning with: 'hunter2'")
        async with http.get("/readyz") as response:
            document = await response.json()
    finally:
        logs.hide([])
    assert document["parts"]["redis"]["reason"].endswith("beginning with: '***'")


async def test_metrics_are_shown_in_prometheus_own_format(http):
    async with http.get("/metrics") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        assert "version=" in response.headers["Content-Type"]
        assert "# TYPE worker_active_jobs gauge\nworker_active_jobs 0.0" in await response.text()


async def test_openmetrics_is_given_to_whoever_asks_for_it(http):
    async with http.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


async def test_alive_is_told_also_when_not_ready(http):
    async with http.get("/healthz") as response:
        assert response.status == 200
        assert await response.json() == {"status": "ok"}


@pytest.mark.parametrize(("ok", "status"), [(True, 200), (False, 503)])
async def test_ready_is_told_with_its_reasons(http, health, ok, status):
    health.set("redis", ok, "asked just now")
    async with http.get("/readyz") as response:
        assert response.status == status
        assert await response.json() == health.document()


@pytest.mark.parametrize("path", ["/", "/metrics/", "/nothing"])
async def test_anything_else_is_not_found(http, path):
    async with http.get(path) as response:
        assert response.status == 404


async def test_a_port_in_use_is_told_with_a_remedy(server, health):
    second = StatusServer(health, Metrics().registry, LOCALHOST, server.port)
    with pytest.raises(ConfigError) as caught:
        await second.start()
    (problem,) = caught.value.problems
    assert problem.startswith(f"METRICS_PORT: {server.port} is already in use")
    assert "choose another" in problem
    await second.stop()


async def test_an_address_is_checked_by_listening_for_a_moment(server):
    with pytest.raises(ConfigError, match=f"^METRICS_PORT: {server.port} is already in use"):
        await check_address(LOCALHOST, server.port)
    port = server.port
    await server.stop()
    for _ in range(2):
        await check_address(LOCALHOST, port)


async def test_an_address_of_another_machine_is_told_as_the_hosts_fault(health):
    with pytest.raises(ConfigError, match=r"^METRICS_HOST: cannot listen on 192\.0\.2\.1"):
        await StatusServer(health, Metrics().registry, "192.0.2.1", 0).start()


async def test_stopping_frees_the_port_and_may_be_repeated(server, health):
    port = server.port
    await server.stop()
    await server.stop()
    again = StatusServer(health, Metrics().registry, LOCALHOST, port)
    await again.start()
    assert again.port == port
    await again.stop()


async def test_silent_clients_block_nobody_and_use_few_descriptors(server, http):
    silent = []
    try:
        for _ in range(300):
            connection = await asyncio.open_connection(LOCALHOST, server.port)
            connection[1].write(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
            silent.append(connection)
        # The first are hung up on.
        assert await silent[0][0].read() == b""
        ours = [path for path in Path("/proc/self/fd").iterdir() if _is_accepted(path, server.port)]
        assert 0 < len(ours) <= 64
        async with http.get("/healthz") as answer:
            assert answer.status == 200
    finally:
        for _, writer in silent:
            writer.close()


async def test_no_connection_within_the_limit_is_closed(server):
    clients = [await asyncio.open_connection(LOCALHOST, server.port) for _ in range(63)]
    try:
        for reader, writer in clients:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in await reader.readline()
    finally:
        for _, writer in clients:
            writer.close()


def _is_accepted(descriptor: Path, port: int) -> bool:
    """Whether a descriptor of this process is the server's end of a connection to that port."""
    try:
        if not descriptor.is_socket():
            return False
        with socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
            return connection.getsockname()[1] == port and bool(connection.getpeername())
    except (OSError, IndexError):  # gone, not connected, or a Unix socket without a name
        return False


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_service_manager_gets_the_state(tmp_path, monkeypatch, kind):
    name = f"nanoagent-test-{os.getpid()}-{tmp_path.name}"
    address = {"path": str(tmp_path / "n"), "abstract": f"\0{name}"}[kind]
    monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(10)
        systemd.notify("READY=1\nSTATUS=taking jobs")
        assert manager.recv(1024) == b"READY=1\nSTATUS=taking jobs"


def test_a_manager_that_is_gone_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.notify("READY=1")


def test_without_a_manager_no_socket_is_made(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delattr(socket, "socket")
    systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("microseconds", "process", "interval_s"),
    [
        ("30000000", None, 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        (None, None, None),
        ("", None, None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_the_watchdog_is_fed_twice_per_timeout_by_the_process_it_watches(
    monkeypatch, microseconds, process, interval_s
):
    pid = str(os.getpid()) if process == "own" else process
    for name, value in {"WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert systemd.watchdog_interval_s() == interval_s
