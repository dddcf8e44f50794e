"""Sockets in a separate network namespace, as a supervisor makes them, without a container."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import pytest

from nanoagent.network.listening_sockets import ListeningAddress, SocketKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ResultT = TypeVar("ResultT")
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_CLOSED_WITHIN_S = 60.0
_AN_HOUR_S = 3600


class OwnNetwork:
    """A network namespace with only loopback. A separate thread runs in it."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("a network namespace is made by root")
        self._work: list[Callable[[], object]] = []
        self._there_is_work = threading.Semaphore(0)
        self._ends = False
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        self.do(self._enter)

    def _live(self) -> None:
        while True:
            self._there_is_work.acquire()
            if self._ends:
                return
            self._work.pop(0)()

    @staticmethod
    def _enter() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inet:
            fcntl.ioctl(inet, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))

    def do(self, work: Callable[[], ResultT]) -> ResultT:
        """Call a function in the namespace, and wait for it."""
        ended = threading.Event()
        results: list[ResultT] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as exc:  # noqa: BLE001 - handed to the caller
                errors.append(exc)
            ended.set()

        self._work.append(run)
        self._there_is_work.release()
        assert ended.wait(60)
        if errors:
            raise errors[0]
        return results[0]

    def bare(self, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET) -> socket.socket:
        return self.do(lambda: socket.socket(family, kind))

    def bind(self, address: ListeningAddress) -> socket.socket:
        """Make the sockets of an honest supervisor."""
        made = self.bare(socket.SOCK_STREAM if address.kind is SocketKind.TCP else socket.SOCK_DGRAM)
        if address.kind is SocketKind.TCP:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deadline = time.monotonic() + _CLOSED_WITHIN_S
        while True:
            try:
                made.bind((address.host, address.port))
            except OSError as exc:  # a thread closes the earlier socket later (nanoagent.host.untrusted_fds)
                if exc.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
            else:
                return made

    def reluctant(self, made: socket.socket | None = None) -> tuple[socket.socket, list[socket.socket]]:
        """Return a connection whose last close takes an hour, and the objects that must stay open for that.

        Args:
            made: The socket to use; None: a new one.
        """
        listener, reluctant = self.bare(), self.bare() if made is None else made
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        reluctant.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, _AN_HOUR_S))
        reluctant.setblocking(True)
        reluctant.connect(listener.getsockname())
        other_end, _ = listener.accept()
        reluctant.setblocking(False)
        with suppress(BlockingIOError):
            while True:  # until the other end accepts no more data
                reluctant.send(bytes(65536))
        return reluctant, [other_end, listener]

    def close(self) -> None:
        self._ends = True
        self._there_is_work.release()
        self._thread.join()


class Channel:
    """Both ends of the connection over which a supervisor passes listening sockets."""

    def __init__(self) -> None:
        self.agents, self.supervisors = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def hand_over(self, said: bytes, descriptors: Sequence[int]) -> None:
        rights = array.array("i", descriptors)
        self.supervisors.sendmsg(
            [said], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        )

    def hand_over_sockets(
        self, wanted: Sequence[ListeningAddress], opened: dict[ListeningAddress, socket.socket]
    ) -> None:
        """Pass sockets as the supervisor does, without keeping copies."""
        numbers = [number for number, address in enumerate(wanted) if address in opened]
        self.hand_over(b"\xff" + bytes(numbers), [opened[wanted[number]].fileno() for number in numbers])
        for bound in opened.values():
            bound.close()

    def close(self) -> None:
        self.agents.close()
        self.supervisors.close()
