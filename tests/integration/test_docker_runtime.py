"""Outer walls by setting, on engines of the tests' own: another runtime, gVisor, remapped user ids."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import subprocess
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.container import docker, execution
from nanoagent.container.docker import DockerDriver
from nanoagent.container.isolation import HostIsolation, isolation_problems, probe
from nanoagent.container.policy import Binding, Sharing
from nanoagent.container.pool import Pool
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.errors import ConfigError, ContainerError
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from nanoagent.wiring.containers import pool_policy, refuse_unfit_engine
from support.checks.packs import packed
from support.doubles.fakes import make_settings
from support.sandboxes.containers import request_for, worker_home
from support.sandboxes.engines import IMAGE, SUBORDINATE, OwnEngine, own_engine, why_none

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from nanoagent.container.execution import Execution
    from nanoagent.container.worker_home import WorkerHome

WHY_NONE = why_none()
pytestmark = [
    pytest.mark.skipif(WHY_NONE is not None, reason=str(WHY_NONE)),
    pytest.mark.timeout(120),
]
needs_gvisor = pytest.mark.skipif(
    shutil.which("runsc") is None, reason="gVisor's runsc is not installed (apt-get install runsc)"
)

# Does what it is told on standard input; linked statically, since the image has nothing but a supervisor.
PROGRAM = r"""
#define _GNU_SOURCE
#include <asm/sockios.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>
static int call(long number, long a, long b, long c) { return syscall(number, a, b, c, 0) < 0 ? errno : 0; }
static void signal_supervisor() {
    siginfo_t info = {};
    info.si_code = SI_QUEUE;
    struct f_owner_ex owner = {F_OWNER_PID, 1};
    int ends[2];
    printf("%d %d %d %d ", kill(1, 9) ? errno : 0, call(SYS_tkill, 1, 9, 0), call(SYS_tgkill, 1, 1, 9),
           call(SYS_rt_sigqueueinfo, 1, 9, (long)&info));
    printf("%d ", (int)syscall(SYS_rt_tgsigqueueinfo, 1, 1, 9, &info) ? errno : 0);
    printf("%d ", call(SYS_pidfd_open, 1, 0, 0));
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) || fcntl(ends[0], F_SETSIG, SIGKILL)) exit(1);
    printf("%d ", fcntl(ends[0], F_SETOWN, 1) ? errno : 0);
    printf("%d ", fcntl(ends[0], F_SETOWN, -1) ? errno : 0);
    printf("%d ", fcntl(ends[0], F_SETOWN_EX, &owner) ? errno : 0);
    printf("%d ", ioctl(ends[0], FIOSETOWN, &owner.pid) ? errno : 0);
    printf("%d ", ioctl(ends[0], SIOCSPGRP, &owner.pid) ? errno : 0);
    if (fcntl(ends[0], F_SETFL, O_ASYNC) || write(ends[1], "x", 1) != 1) exit(1);
    kill(-1, 9);
}
int main() {
    struct utsname name;
    char said[16] = "";
    if (!scanf("%15s", said) || uname(&name)) return 1;
    if (!strcmp(said, "signal")) signal_supervisor();
    if (!strcmp(said, "hold")) memset(malloc(400u << 20), 1, 400u << 20);
    if (!strcmp(said, "fork"))
        for (int i = 0; i < 2000; i++)
            if (!fork()) for (;;) pause();
    printf("%s %s\n", said, name.release);
}
"""


@pytest.fixture(scope="module")
def program() -> bytes:
    """The program above, built by the image that builds jobs."""
    command = ["docker", "run", "--rm", "--interactive", "--network", "none", "--entrypoint", "sh"]
    build = "g++ -static -O1 -w -x c++ - -o /tmp/program && cat /tmp/program"
    return subprocess.run(
        [*command, "nanoagent-cpp:latest", "-c", build],
        check=True,
        input=PROGRAM.encode(),
        stdout=subprocess.PIPE,
    ).stdout


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runtime `noting` writes down what it is called with."""
    return tmp_path_factory.mktemp("noting") / "called"


@pytest.fixture(scope="module")
def engine(called: Path) -> Iterator[OwnEngine]:
    """One that knows a runtime which is runc and tells of it, and gVisor where there is one."""
    noting = called.parent / "noting"
    noting.write_text(f'#!/bin/sh\necho "$@" >>{called}\nexec {shutil.which("runc")} "$@"\n')
    noting.chmod(0o755)
    runtimes: dict[str, dict[str, Any]] = {"noting": {"path": str(noting)}}
    if runsc := shutil.which("runsc"):
        runtimes["gvisor"] = {"path": runsc, "runtimeArgs": ["--network=none", "--host-uds=open"]}
        runtimes["gvisor-shut"] = {"path": runsc, "runtimeArgs": ["--network=none"]}
    with own_engine(runtimes) as engine:
        yield engine


@pytest.fixture(scope="module")
def remapping_engine() -> Iterator[OwnEngine]:
    with own_engine({}, remaps=True) as engine:
        yield engine


@dataclass(slots=True)
class Worker:
    """The part of a worker that makes containers and runs programs in them.

    Attributes:
        verdict: The level that it has found.
        pool: Its containers.
        home: Its folder.
        binding: What it runs.
    """

    verdict: HostIsolation
    pool: Pool
    home: WorkerHome
    binding: Binding

    async def run(self, word: str) -> tuple[Execution, str]:
        """A run that is told to do that, and the id of its container."""
        request = request_for(word.encode(), arguments=RECIPES[Runtime.CPP].arguments)
        async with self.pool.acquire(self.binding) as acquired:
            staging = Path(tempfile.mkdtemp(dir=self.home.staging))
            return await execution.execute(acquired, request, staging), acquired.container.id


@pytest.fixture
def worker(
    program: bytes, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractAsyncContextManager[Worker]]:
    @asynccontextmanager
    async def worker(engine: OwnEngine, **changes: Any) -> AsyncIterator[Worker]:
        """One that starts as `nanoagent run` does, as far as containers go; `changes` are settings."""
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        settings = make_settings(docker_cpp_image=IMAGE, worker_memory_mb=1024, **changes)
        driver = DockerDriver()
        try:
            await refuse_unfit_engine(settings, driver.client)
            with worker_home() as home:
                policy = replace(pool_policy(settings), sizes=dict.fromkeys(Runtime, 0))
                verdict = await probe(driver, home, policy, apparmor=None)
                pool = Pool(driver, home, replace(policy, isolation=verdict.isolation), Metrics(), Health())
                await pool.start()
                try:
                    yield Worker(verdict, pool, home, _binding(program, home.path))
                finally:
                    await pool.close()
        finally:
            await driver.close()

    return worker


def _binding(program: bytes, folder: Path) -> Binding:
    tree = folder / "code"
    tree.mkdir()
    (folder / "built").write_bytes(program)
    (folder / "built").chmod(0o755)
    return Binding(
        runtime=Runtime.CPP,
        function_id="test",
        digest=hashlib.sha256(program).hexdigest(),
        memory_mb=128,
        cpus=1.0,
        most_cpus=1.0,
        tree=packed(tree),
        tree_bytes=0,
        program=folder / "built",
    )


def text_of(ran: Execution) -> str:
    return ran.collected.stdout.text.strip()


# --- the setting


async def test_containers_are_created_by_the_runtime_of_the_setting(engine, worker, called):
    async with worker(engine, docker_runtime="noting") as using:
        ran, container_id = await using.run("hello")
    assert text_of(ran).startswith("hello ")
    assert using.verdict.isolation is Isolation.SANDBOX
    calls = [line for line in called.read_text().splitlines() if container_id in line]
    assert any(" create " in f" {call} " for call in calls)


async def test_without_the_setting_docker_takes_its_default(engine, worker, called):
    called.write_text("")
    async with worker(engine) as using:
        ran, _ = await using.run("hello")
    assert text_of(ran).startswith("hello ")
    assert called.read_text() == ""


async def test_a_missing_runtime_prevents_the_start_and_the_error_lists_the_existing_ones(engine, worker):
    with pytest.raises(
        ConfigError, match=r"^DOCKER_RUNTIME: Docker has no runtime kata-runtime; it has .*noting"
    ):
        async with worker(engine, docker_runtime="kata-runtime"):
            pass


# --- gVisor


@needs_gvisor
async def test_with_gvisor_memory_bombs_and_fork_bombs_are_user_errors(engine, worker, record_property):
    async with worker(engine, docker_runtime="gvisor") as using:
        ran, _ = await using.run("hello")
        ends = [(await using.run(word))[0].error_type for word in ("hold", "fork")]
        again, _ = await using.run("hello")
    host = Path("/proc/sys/kernel/osrelease").read_text().strip()
    word, release = text_of(ran).split()
    assert (word, text_of(again)) == ("hello", text_of(ran))
    assert release != host
    assert ends == [ErrorType.OUT_OF_MEMORY, ErrorType.PROCESS_LIMIT]
    record_property("tried", ["attacks", len(ends)])


@needs_gvisor
async def test_with_gvisor_only_our_filter_stops_a_program_from_killing_the_supervisor(
    engine, worker, record_property
):
    async with worker(engine, docker_runtime="gvisor") as using:
        ran, container_id = await using.run("signal")
        again, same_container = await using.run("hello")
    *errors, _, _ = text_of(ran).split()
    assert (ran.error_type, len(errors)) == (None, 11)
    assert {int(error) for error in errors} == {errno.EPERM}
    assert (again.error_type, same_container) == (None, container_id)
    record_property("tried", ["attacks", len(errors) + 1])


@needs_gvisor
async def test_the_level_within_gvisor_is_found_out_and_what_asks_for_more_is_refused(engine, worker):
    async with worker(engine, docker_runtime="gvisor") as using:
        verdict = using.verdict
    if verdict.isolation is Isolation.SANDBOX:
        pytest.skip("this release of gVisor allows a sandbox within")
    assert "no sandbox can be made here" in str(verdict.reason)
    (problem,) = isolation_problems(verdict, "L2", Sharing.FUNCTION)
    assert problem.startswith("MIN_ISOLATION: L2 is not possible on this host")


@needs_gvisor
async def test_a_runtime_that_keeps_the_supervisor_from_the_agent_is_named_with_the_remedy(
    engine, worker, monkeypatch
):
    monkeypatch.setattr(docker, "_HELLO_TIMEOUT_S", 1.0)
    with pytest.raises(
        ContainerError, match=r"did not connect .*DOCKER_RUNTIME=gvisor-shut .*--host-uds=open"
    ):
        async with worker(engine, docker_runtime="gvisor-shut"):
            pass


# --- remapped user ids


async def test_with_remapped_user_ids_sandboxes_work_and_no_user_in_them_is_a_user_of_the_host(
    remapping_engine, worker
):
    async with worker(remapping_engine, container_uid_base=20_000) as using:
        ran, container_id = await using.run("hello")
        pid = int(remapping_engine.docker("inspect", "--format", "{{.State.Pid}}", container_id))
        status = Path(f"/proc/{pid}/status").read_text()
    assert text_of(ran).startswith("hello ")
    assert using.verdict.isolation is Isolation.SANDBOX
    uids = re.findall(r"^Uid:\s+(.*)$", status, re.MULTILINE)[0].split()
    assert {int(uid) for uid in uids} <= set(range(SUBORDINATE + 20_000, SUBORDINATE + 65_534))


async def test_user_ids_that_a_remapping_engine_lacks_prevent_the_start(remapping_engine, worker):
    with pytest.raises(ConfigError, match=r"^CONTAINER_UID_BASE: 1900000000 "):
        async with worker(remapping_engine):
            pass
