"""A standby process does the same as `node index.js`: every byte is equal, except random values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.programs.languages import documented_version
from support.sandboxes.node_identity import NodeBench, node_bench, program
from support.sandboxes.node_programs import DIFFERENT, SAME

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def bench() -> Iterator[NodeBench]:
    with node_bench() as bench:
        yield bench


@pytest.mark.parametrize("name", SAME)
def test_a_standby_process_shows_what_plain_node_shows(bench: NodeBench, name: str):
    assert bench.run(SAME[name], "standby") == bench.run(SAME[name], "plain")


@pytest.mark.parametrize("name", DIFFERENT)
def test_no_two_spares_share_what_is_random(bench: NodeBench, name: str):
    shown = [bench.run(program(DIFFERENT[name]), "standby") for _ in range(2)]
    assert [ended.stderr for ended in shown] == ["", ""]
    assert shown[0].stdout != shown[1].stdout


def test_the_version_is_the_documented_one(bench: NodeBench):
    code = "console.log(process.versions.node.split('.')[0])"
    assert bench.run(program(code), "plain").stdout.strip() == documented_version("nodejs")


@pytest.mark.parametrize(
    "end", ["process.exit()", "throw new Error('x')", "process.kill(process.pid, 'SIGKILL')"]
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_all_that_was_written_before_a_sudden_end_arrives(bench: NodeBench, stream: str, end: str):
    """Far more than a pipe holds, which plain node loses."""
    code = f"process.{stream}.write('x'.repeat(3e6)); process.{stream}.write('last'); {end}"
    ended = bench.run(program(code), "standby")
    assert ("x" * 3_000_000 + "last") in {"stdout": ended.stdout, "stderr": ended.stderr}[stream]


def test_a_standby_process_that_gets_no_job_ends_quietly(bench: NodeBench):
    ended = bench.run(program("console.log('never')", job=False), "standby")
    assert (ended.status, ended.signal, ended.stdout, ended.stderr) == (0, None, "", "")


def test_a_variable_that_is_no_text_arrives_byte_for_byte(bench: NodeBench):
    code = "process.stdout.write(require('fs').readFileSync('/proc/self/environ'))"
    ended = bench.run(program(code, environment={"PAYLOAD": "\xff\xfe"}, encoding="latin1"), "standby")
    assert "PAYLOAD=\xff\xfe\0" in ended.stdout


def test_a_program_that_is_not_there_ends_the_standby_process_as_it_ends_a_plain_start(bench: NodeBench):
    ended = bench.run(program("", arguments=("/bin/none",)), "standby")
    assert (ended.status, ended.stdout, ended.stderr) == (127, "", "")


def test_a_standby_process_that_aborts_dies_by_the_same_signal(bench: NodeBench):
    # What is printed are addresses.
    assert bench.run(program("process.abort()"), "standby").signal == "SIGABRT"


def test_a_standby_process_shows_nothing_of_how_it_was_started(bench: NodeBench):
    code = (
        "console.log(process.env.NODE_OPTIONS, process.execArgv, process.argv.length, process.eventNames())"
    )
    assert (
        bench.run(program(code), "standby").stdout
        == "undefined [] 2 [ 'newListener', 'removeListener', 'warning' ]\n"
    )
