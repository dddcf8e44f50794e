"""Starts the servers of the embedded stack: Redis, and moto for SQS, S3 and CloudWatch.

`start_redis` and `start_moto` start a server, wait until it answers, and add its stop to an exit stack.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import socket
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from nanoagent.dev.local_services.service import Service, StackError

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

HOST: Final = "127.0.0.1"
"""The address that the servers listen on."""

_PROBE_TIMEOUT_S: Final = 2.0
_PORT_ATTEMPTS: Final = 5


def start_redis(folder: Path, starting: ExitStack) -> tuple[Service, int]:
    """Start a Redis server on a free port.

    Args:
        folder: The server's working directory, and the folder of its log.
        starting: Stops the server when it closes.

    Returns:
        The service and its port.

    Raises:
        StackError: Redis is not installed, or did not start.
    """
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise StackError(
            "neither redis-server nor valkey-server is on PATH; install one "
            "(Debian, Ubuntu: apt-get install redis-server)"
        )
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        port = _free_port()
        command = [program, "--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no"]
        service = Service.start("redis", command, folder)
        starting.callback(service.stop)
        try:
            pid = service.wait_until(lambda port=port: redis_process(HOST, port))  # type: ignore[misc]
        except StackError:
            if attempt == _PORT_ATTEMPTS or "Address already in use" not in service.output():
                raise
            continue
        # Another process may have taken the port after `_free_port` released it, even another Redis.
        if pid == service.process.pid:
            return service, port
    raise StackError(f"no free port for Redis in {_PORT_ATTEMPTS} attempts")


def start_moto(folder: Path, starting: ExitStack) -> tuple[Service, str]:
    """Start moto's server on a free port.

    Args:
        folder: The server's working directory, and the folder of its log.
        starting: Stops the server when it closes.

    Returns:
        The service and its URL.

    Raises:
        StackError: moto is not installed, or did not start.
    """
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask")):
        raise StackError("moto's server is not installed; get it with: pip install 'nanoagent[local]'")
    # With port 0 the system chooses a free port; moto's log names it.
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", "0"]
    service = Service.start("moto", command, folder)
    starting.callback(service.stop)
    url = service.wait_until(lambda: _announced_url(service.output()))
    service.wait_until(lambda: _answers(f"{url}/moto-api/"))
    return service, url


def redis_process(host: str, port: int) -> int | None:
    """Return the process ID of the Redis server at an address, None if no server answers."""
    client = Redis(
        host=host, port=port, socket_timeout=_PROBE_TIMEOUT_S, protocol=2, retry=Retry(NoBackoff(), 0)
    )
    with client:
        try:
            return int(client.info("server")["process_id"])
        except (RedisError, OSError):
            return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _announced_url(log: str) -> str | None:
    found = re.search(r"Running on (http://[\d.]+:\d+)\s", log)
    return found[1] if found else None


def _answers(url: str) -> bool | None:
    """Return True if a server answers at the URL, None otherwise; `Service.wait_until` waits for True."""
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S):  # noqa: S310 - our own http address
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return None
