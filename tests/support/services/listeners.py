"""Listening sockets on this host, as targets of hostile programs. They record connections."""

from __future__ import annotations

import fcntl
import secrets
import shutil
import socket
import struct
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from support.programs.attacks import HostAddresses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.dev.local_services import EmbeddedStack

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_LINK_LOCAL = "fe80"  # unusable without the name of an interface
_REACH_S = 10.0
_NEIGHBOUR_PORT = 8099
# It prints its address when it listens, then prints each connection.
_NEIGHBOUR = f"""
import socket
listener = socket.create_server(('', {_NEIGHBOUR_PORT}))
print(socket.gethostbyname(socket.gethostname()), flush=True)
while True:
    listener.accept()
"""
_IMAGE = "nanoagent-python:latest"
# Names of such bridges. Parallel tests may remove other bridges at any time.
_BRIDGE = "na-host-"


@dataclass(frozen=True, slots=True)
class AnsweringHost:
    """The listening sockets and their connections.

    Attributes:
        addresses: The addresses, for the table of attacks.
        sockets: The listening sockets that only the attacks know.
        no_neighbour: The reason why no other container with a network exists; empty if one exists.
    """

    addresses: HostAddresses
    sockets: tuple[socket.socket, ...]
    no_neighbour: str = ""

    def visitors(self) -> int:
        """Accept all waiting connections and return their number."""
        count = 0
        for listener in self.sockets:
            with suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    count += 1
        return count

    def check_that_it_answers(self) -> None:
        """Connect to each address. An address without a listener would make an attack look harmless."""
        for host, port in self.addresses.tcp:
            socket.create_connection((host, port), _REACH_S).close()
        for name in (*(f"\0{name}" for name in self.addresses.abstract), *self.addresses.unix):
            with socket.socket(socket.AF_UNIX) as near:
                near.connect(name)


@contextmanager
def answering_host(stack: EmbeddedStack) -> Iterator[AnsweringHost]:
    """Listen on all addresses of this host, beside the stack's services and another container."""
    with ExitStack() as opened:
        folder = Path(tempfile.mkdtemp(prefix="na-host-"))
        opened.callback(shutil.rmtree, folder)
        # Bridges are interfaces of the host. Start the other container first, to listen on its gateway.
        bridge = f"{_BRIDGE}{secrets.token_hex(3)}"
        neighbour, reason = opened.enter_context(_neighbour(bridge))
        anywhere = socket.create_server(("", 0))
        anywhere_6 = socket.create_server(("::", 0), family=socket.AF_INET6)
        name = f"nanoagent-host-{secrets.token_hex(8)}"
        abstract, path = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        abstract.bind(f"\0{name}")
        path.bind(str(folder / "host.sock"))
        (folder / "host.sock").chmod(0o777)
        folder.chmod(0o755)
        listeners = (anywhere, anywhere_6, abstract, path)
        for listener in listeners:
            opened.callback(listener.close)
            listener.listen(64)
            listener.setblocking(False)
        port, port_6 = anywhere.getsockname()[1], anywhere_6.getsockname()[1]
        aws = urlsplit(stack.endpoint_url)
        assert aws.hostname is not None
        assert aws.port is not None
        addresses = HostAddresses(
            tcp=(
                *((address, port) for address in _addresses_4(bridge)),
                *((address, port_6) for address in _addresses_6()),
                (stack.redis_host, stack.redis_port),
                (aws.hostname, aws.port),
            ),
            abstract=(name,),
            unix=(str(folder / "host.sock"),),
        )
        host = AnsweringHost(addresses, listeners, reason)
        if neighbour is not None:
            host = replace(host, addresses=replace(addresses, tcp=(*addresses.tcp, neighbour)))
        yield host


def _addresses_4(bridge: str) -> list[str]:
    found = []
    names = [name for _, name in socket.if_nameindex() if name == bridge or not name.startswith(_BRIDGE)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for name in names:
            request = struct.pack("256s", name.encode())
            with suppress(OSError):  # an interface without an address
                found.append(socket.inet_ntoa(fcntl.ioctl(asker, _SIOCGIFADDR, request)[20:24]))
    return found


def _addresses_6() -> list[str]:
    rows = [line.split()[0] for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    addresses = [bytes.fromhex(row) for row in rows if not row.startswith(_LINK_LOCAL)]
    return [socket.inet_ntop(socket.AF_INET6, address) for address in addresses]


@contextmanager
def _neighbour(bridge: str) -> Iterator[tuple[tuple[str, int] | None, str]]:
    """Start a container with a network that answers. Return None and the reason if that fails."""
    name = f"nanoagent-neighbour-{secrets.token_hex(4)}"
    with ExitStack() as opened:
        made = _docker("network", "create", "--opt", f"com.docker.network.bridge.name={bridge}", name)
        if made.returncode:
            yield None, f"Docker makes no network here: {made.stderr.strip()}"
            return
        opened.callback(_docker, "network", "rm", name)
        options = ("--rm", "--name", name, "--network", name, "--entrypoint", "/usr/bin/python3")
        command = ["docker", "run", *options, _IMAGE, "-c", _NEIGHBOUR]
        container = opened.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        opened.callback(_docker, "rm", "--force", name)
        assert container.stdout is not None
        assert container.stderr is not None
        address = container.stdout.readline().strip()
        if address:
            yield (address, _NEIGHBOUR_PORT), ""
        else:
            yield None, f"Docker gives no container a network here: {container.stderr.read().strip()}"


def _docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], check=False, capture_output=True, text=True)
