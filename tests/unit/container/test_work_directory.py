from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nanoagent.container.work_directory import WorkDirectory
from nanoagent.container.worker_home import WorkerHome, is_worker_dead, remove_if_dead
from nanoagent.model.errors import ConfigError, ContainerError, PlatformError
from support.doubles.fake_supervisor import hello
from support.sandboxes.containers import worker_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

WAIT_S = 20.0


@pytest.fixture
def home() -> Iterator[WorkerHome]:
    with worker_home() as home:
        yield home


@pytest.fixture
async def directory(home: WorkerHome) -> AsyncIterator[WorkDirectory]:
    directory = home.new_work_directory("one")
    yield directory
    await directory.remove()


# --- the worker's folder


def test_two_workers_of_one_name_cannot_live_together(home):
    with pytest.raises(ConfigError, match="WORKER_ID: another worker runs as"):
        WorkerHome(home.path.parent, home.path.name).claim()


def test_a_folder_that_cannot_be_made_is_told_with_its_variable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="DOCKER_WORK_DIR_ROOT"):
        WorkerHome(tmp_path / "file", "w").claim()


def test_what_a_dead_worker_of_the_same_name_left_is_removed(tmp_path):
    (tmp_path / "w/slots/old").mkdir(parents=True)
    home = WorkerHome(tmp_path, "w")
    home.claim()
    assert list((home.path / "slots").iterdir()) == list(home.staging.iterdir()) == []
    home.release()


def test_nobody_else_may_enter_the_workers_folder(home):
    assert home.path.stat().st_mode & 0o777 == 0o700


def test_a_worker_that_holds_its_lock_lives(home):
    assert not is_worker_dead(home.path)


def test_a_worker_that_has_left_is_not_to_be_seen(tmp_path):
    home = WorkerHome(tmp_path, "w")
    home.claim()
    home.release()
    home.release()
    assert is_worker_dead(home.path) is None
    assert not home.path.exists()


def test_of_a_folder_that_is_not_to_be_seen_nothing_is_known(tmp_path):
    assert is_worker_dead(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("mode", "owner"), [(0o757, 0), (0o775, 0), (0o755, 12345)], ids=["anyone's", "a group's", "another's"]
)
def test_a_root_folder_that_another_user_may_write_to_is_refused(tmp_path, mode, owner):
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(mode)
    if owner:
        os.chown(root, owner, owner)
    with pytest.raises(ConfigError, match=r"DOCKER_WORK_DIR_ROOT.*others may write to it"):
        WorkerHome(root, "w").claim()


def test_a_root_folder_like_tmp_will_do(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root").chmod(0o1777)
    home = WorkerHome(tmp_path / "root", "w")
    home.claim()
    home.release()


def die_with(root: Path, name: str) -> Path:
    """The folder of a worker of that name that was killed."""
    claim = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from nanoagent.container.worker_home import WorkerHome\n"
        "WorkerHome(Path(sys.argv[1]), sys.argv[2]).claim()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", claim, str(root), name], check=False)
    assert (root / name / "lock").exists()
    return root / name


def test_a_worker_that_was_killed_is_dead_though_its_folder_is_there(tmp_path):
    home = die_with(tmp_path, "w")
    assert is_worker_dead(home)
    remove_if_dead(home)
    assert not home.exists()


def test_the_folders_of_dead_workers_without_containers_go_and_nothing_else(home, tmp_path):
    root = home.path.parent
    dead = die_with(root, "dead")
    (dead / "slots/one/code").mkdir(parents=True)
    (root / ".gone-0123/slots").mkdir(parents=True)
    alive = WorkerHome(root, "alive")
    alive.claim()
    for name in ("cache", "photos", "empty"):  # a cache has a lock as well
        (root / name).mkdir()
    (root / "cache/lock").touch()
    (root / "cache/entries").mkdir()
    (root / "file").touch()
    home.remove_dead_siblings()
    assert {path.name for path in root.iterdir()} == {
        home.path.name, "alive", "cache", "photos", "empty", "file",
    }  # fmt: skip
    assert (alive.path / "slots").is_dir()
    alive.release()


def test_of_a_worker_that_has_been_started_again_meanwhile_nothing_is_removed(tmp_path):
    die_with(tmp_path, "w")
    assert is_worker_dead(tmp_path / "w")
    again = WorkerHome(tmp_path, "w")
    again.claim()
    remove_if_dead(tmp_path / "w")
    assert (again.path / "slots").is_dir()
    again.release()


def test_a_look_at_the_lock_does_not_keep_a_worker_from_starting(tmp_path, monkeypatch):
    home = die_with(tmp_path, "w")
    looking = os.open(home / "lock", os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
    WorkerHome(tmp_path, "w").claim()
    os.close(looking)


def test_a_folder_that_is_taken_away_while_it_is_claimed_is_made_anew(tmp_path, monkeypatch):
    dead = die_with(tmp_path, "w")
    flock = fcntl.flock

    def first_taken_away(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        remove_if_dead(dead)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", first_taken_away)
    again = WorkerHome(tmp_path, "w")
    again.claim()
    assert (again.path / "slots").is_dir()
    assert not is_worker_dead(again.path)
    again.release()


# --- the socket


async def test_the_first_connection_is_the_session(directory):
    await directory.socket.listen(os.getuid())
    _, writer = await asyncio.open_unix_connection(directory.path / "agent.sock")
    writer.write(hello())
    await (await directory.socket.session(WAIT_S)).greet()
    writer.close()


async def test_once_connected_there_is_no_socket_any_more(directory):
    await directory.socket.listen(os.getuid())
    _, writer = await asyncio.open_unix_connection(directory.path / "agent.sock")
    await directory.socket.session(WAIT_S)
    directory.socket.take_listening_sockets((), kept=True)
    assert [path.name for path in directory.path.iterdir()] == ["hosts"]
    writer.close()


@pytest.mark.parametrize(("pid", "uid", "expected"), [(0, 0, True), (1, 0, False), (0, 1, False)])
async def test_only_process_1_is_a_launcher(directory, pid, uid, expected):
    """A connection of another process or user stays open, so that the container lives, but proves nothing."""
    await directory.socket.listen(os.getuid() + uid, launcher=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as theirs:
        theirs.connect(str(directory.path / "launcher.sock"))
        launcher = directory.socket.take_launcher(os.getpid() + pid)
        assert launcher.is_process_1 is expected
        assert not (directory.path / "launcher.sock").exists()
        launcher.close()


async def test_without_a_launcher_there_is_no_socket_for_it(directory):
    await directory.socket.listen(os.getuid())
    assert not (directory.path / "launcher.sock").exists()
    assert directory.socket.take_launcher(os.getpid()) is None


async def test_a_launcher_that_has_not_connected_is_none(directory):
    await directory.socket.listen(os.getuid(), launcher=True)
    assert directory.socket.take_launcher(os.getpid()) is None


async def test_the_user_of_a_container_gets_a_name_that_any_user_can_look_up(directory):
    directory.name_user(1_900_000_007)
    names = {"passwd": "function:x:1900000007:1900000007::/tmp:/bin/sh", "group": "function:x:1900000007:"}
    for name, line in names.items():
        path = directory.path / name
        assert path.read_text().splitlines()[-1] == line
        assert path.stat().st_mode & 0o777 == 0o644


async def test_localhost_and_the_hosts_own_name_can_be_looked_up(directory):
    names = [line.split() for line in (directory.path / "hosts").read_text().splitlines()]
    assert names[:2] == [["127.0.0.1", "localhost"], ["::1", "localhost", "ip6-localhost", "ip6-loopback"]]
    assert [address for address, *found in names if "sandbox" in found] == ["127.0.0.1"]


async def test_a_second_connection_is_hung_up_on(directory):
    await directory.socket.listen(os.getuid())
    path = directory.path / "agent.sock"
    _, first = await asyncio.open_unix_connection(path)
    reader, second = await asyncio.open_unix_connection(path)
    async with asyncio.timeout(WAIT_S):
        assert await reader.read() == b""
    first.close()
    second.close()


async def test_another_user_is_hung_up_on(directory):
    await directory.socket.listen(os.getuid() + 1)
    reader, writer = await asyncio.open_unix_connection(directory.path / "agent.sock")
    async with asyncio.timeout(WAIT_S):
        assert await reader.read() == b""
    with pytest.raises(ContainerError, match="did not connect within 0 s"):
        await directory.socket.session(0)
    writer.close()


async def test_who_calls_before_it_is_known_who_may_is_kept_waiting_with_what_he_said(directory):
    await directory.socket.listen()
    _, writer = await asyncio.open_unix_connection(directory.path / "agent.sock")
    writer.write(hello())
    with pytest.raises(ContainerError, match="did not connect within 0 s"):
        await directory.socket.session(0.05)
    directory.socket.admit({os.getuid(), 4711})
    await (await directory.socket.session(WAIT_S)).greet()
    writer.close()


async def test_a_connection_of_another_user_is_closed_as_soon_as_the_user_is_known(directory):
    await directory.socket.listen()
    reader, writer = await asyncio.open_unix_connection(directory.path / "agent.sock")
    directory.socket.admit({os.getuid() + 1})
    async with asyncio.timeout(WAIT_S):
        assert await reader.read() == b""
    with pytest.raises(ContainerError, match="did not connect within 0 s"):
        await directory.socket.session(0.05)
    writer.close()


async def test_a_folder_that_is_not_there_is_our_own_error(tmp_path):
    with pytest.raises(ContainerError, match="no socket could be made"):
        await WorkDirectory(tmp_path / "gone").socket.listen(os.getuid())


async def test_the_address_of_a_socket_does_not_say_where_its_folder_is(directory):
    await directory.socket.listen(os.getuid())
    _, writer = await asyncio.open_unix_connection(directory.path / "agent.sock")
    # What the other end, and /proc/net/unix of its network namespace, show of ours.
    assert re.fullmatch(r"/proc/self/fd/\d+/agent\.sock", writer.get_extra_info("peername"))
    assert str(directory.path) not in Path("/proc/net/unix").read_text()
    writer.close()


async def test_removing_hangs_up_and_leaves_nothing(directory):
    await directory.socket.listen(os.getuid())
    reader, writer = await asyncio.open_unix_connection(directory.path / "agent.sock")
    await directory.socket.session(WAIT_S)
    await directory.remove()
    async with asyncio.timeout(WAIT_S):
        assert await reader.read() == b""
    assert not directory.path.exists()
    await directory.remove()
    writer.close()


async def test_a_slot_that_is_there_already_is_our_own_error(home, directory):
    with pytest.raises(ContainerError, match="no work directory"):
        home.new_work_directory("one")


# --- code and programs


@pytest.fixture
def code(tmp_path: Path) -> Path:
    code = tmp_path / "pack"
    code.write_text("a pack")
    code.chmod(0o555)
    os.utime(code, (5, 5))
    return code


async def test_code_byte_code_and_program_are_where_the_supervisor_looks(directory, code):
    await directory.put_code(code)
    await directory.put_byte_code(code)
    await directory.put_program(code)
    for name in ("code", "byte_code", "program"):
        assert (directory.path / name).samefile(code)  # a link, no copy
    await directory.clear()
    assert {path.name for path in directory.path.iterdir()} == {"hosts"}
    await directory.clear()


async def test_what_cannot_be_linked_is_copied_with_its_rights_and_time(directory, code, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EMLINK, "too many links")

    monkeypatch.setattr(os, "link", refuse)
    await directory.put_code(code)
    copy = directory.path / "code"
    assert not copy.samefile(code)
    status = copy.stat()
    assert (copy.read_text(), status.st_mode & 0o777, status.st_mtime) == ("a pack", 0o555, 5)


@pytest.mark.parametrize("existing", ["file", "link to a file", "link to nothing"])
@pytest.mark.parametrize("can_link", [True, False])
async def test_a_file_that_exists_is_not_replaced(directory, code, tmp_path, existing, can_link, monkeypatch):
    """Also if hard links are not possible, for example because a file has too many: EMLINK."""
    target = directory.path / "code"
    (tmp_path / "other").write_text("other")
    if existing == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / ("other" if existing == "link to a file" else "nothing"))
    if not can_link:
        link = os.link

        def refuse(source: str, target: str) -> None:
            link(source, target)  # fails if the target exists, as in the kernel
            os.unlink(target)  # noqa: PTH108
            raise OSError(errno.EMLINK, "too many links")

        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(PlatformError, match="could not be put into a work directory"):
        await directory.put_code(code)
    assert (tmp_path / "other").read_text() == "other"
    assert not (tmp_path / "nothing").exists()
    assert existing != "file" or target.read_text() == "mine"


async def test_code_that_is_gone_is_our_own_error(directory, tmp_path):
    with pytest.raises(PlatformError, match="could not be put into a work directory"):
        await directory.put_code(tmp_path / "nowhere")


async def test_the_containers_user_may_read_the_folder_but_not_write(directory):
    assert directory.path.stat().st_mode & 0o777 == 0o755


async def test_code_that_nobody_waits_for_any_more_does_not_come_after_the_folder_is_removed(
    directory: WorkDirectory, code: Path, monkeypatch: pytest.MonkeyPatch
):
    begun, may_go_on = threading.Event(), threading.Event()
    link = os.link

    def slow_link(source: Path, target: Path) -> None:
        begun.set()
        may_go_on.wait(WAIT_S)
        link(source, target)

    monkeypatch.setattr(os, "link", slow_link)
    linking = asyncio.create_task(directory.put_code(code))
    await asyncio.to_thread(begun.wait, WAIT_S)
    linking.cancel()
    asyncio.get_running_loop().call_later(0.1, may_go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await linking
    assert (directory.path / "code").exists()
    await directory.remove()
    assert not directory.path.exists()
