"""A process of the zygote of Node.js does the same in a sandbox as a plain start of node there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from nanoagent.container.policy import Sharing
from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation
from support.sandboxes.adversarial import yard
from support.sandboxes.node_programs import SAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.sandboxes.adversarial import Function, Yard

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLAIN = ("/usr/bin/env", "/usr/bin/node", "index.js")
WAITING = ("/usr/bin/node", "index.js")
# What a process inherits from the zygote: signals, streams, descriptors, the environment, children, errors.
IN_EVERY_RUN = (
    *("hello", "both streams in order", "exit handlers", "death by its own SIGTERM", "SIGPIPE is ignored"),
    *("uncaught error", "fork", "spawn of node", "children inherit streams", "cluster", "another program"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def containers() -> AsyncIterator[Yard]:
    """A container serves one function after another, so that none has to be created for a test."""
    async with yard(Isolation.SANDBOX, (Runtime.NODEJS,), sharing=Sharing.WORKER) as made:
        yield made


async def shown(
    containers: Yard, function: Function, name: str, arguments: tuple[str, ...]
) -> tuple[object, ...]:
    """Run a program; return all that its author can see of it."""
    given = SAME[name]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
    ran = await containers.run(
        function,
        given.payload,
        arguments=arguments,
        environment=environment | dict(given.environment),
        capture_bytes=4 << 20,
    )
    ended = ran.execution
    return ended.error_type, ended.exit_code, ran.stdout, ran.stderr


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.exhaustive)
        for name in SAME
        if SAME[name].encoding == "utf8"
    ],
)
async def test_a_process_of_the_zygote_shows_what_a_plain_start_shows(containers: Yard, name: str):
    function = containers.function(Runtime.NODEJS, dict(SAME[name].files))
    given = SAME[name].arguments
    waiting = await shown(containers, function, name, given)
    assert waiting == await shown(containers, function, name, PLAIN if given == WAITING else given)


STATE = """
const fs = require('fs');
const status = fs.readFileSync('/proc/self/status', 'utf8');
const fields = 'SigBlk SigIgn SigCgt CapPrm CapEff CapBnd CapAmb NoNewPrivs Uid Gid'.split(' ');
const target = (name) => {
  try { return fs.readlinkSync(`/proc/self/fd/${name}`); } catch (error) { return error.code; }
};
const links = fs.readdirSync('/proc/self/fd').map((name) => target(name).replace(/\\d+/g, 'N'));
console.log(JSON.stringify({
  status: fields.map((field) => status.match(new RegExp(`^${field}:.*`, 'm'))[0]),
  links: links.sort(),
  limits: fs.readFileSync('/proc/self/limits', 'utf8'),
  cwd: process.cwd(), title: process.title, env: process.env, umask: process.umask(), pid: process.pid,
  command: fs.readFileSync('/proc/self/cmdline', 'utf8'), name: fs.readFileSync('/proc/self/comm', 'utf8'),
  group: fs.readFileSync('/proc/self/stat', 'utf8').split(' ').slice(4, 8),
  adjustment: fs.readFileSync('/proc/self/oom_score_adj', 'utf8'),
}, null, 1));
"""


async def test_a_process_of_the_zygote_has_the_state_of_a_plain_start(containers: Yard):
    """Signals, capabilities, descriptors, limits, session: all that a process inherits from its parent."""
    function = containers.function(Runtime.NODEJS, {"index.js": STATE})
    waiting = await containers.run(function, "")
    plain = await containers.run(function, "", arguments=PLAIN)
    assert waiting.stdout == plain.stdout


async def test_a_process_of_the_zygote_shows_nothing_of_the_zygote(containers: Yard):
    """Its parent is outside the sandbox, and the variable that loads the zygote's library is gone."""
    code = (
        "const { environ, env, ppid } = { environ: require('fs').readFileSync('/proc/self/environ', 'utf8'), "
        "...process }; console.log(ppid, 'LD_PRELOAD' in env, environ.includes('PRELOAD'));"
        "console.log(require('child_process').execFileSync('env').includes('PRELOAD'))"
    )
    ran = await containers.run(containers.function(Runtime.NODEJS, {"index.js": code}), "")
    assert ran.stdout == "0 false false\nfalse\n"
