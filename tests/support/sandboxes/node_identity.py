"""Small Node.js programs in a container, each run by plain `node index.js` or by a standby process."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

IMAGE = os.environ.get("DOCKER_NODEJS_IMAGE", "nanoagent-nodejs:latest")
MEMORY = "256m"
_HARNESS = Path(__file__).with_name("node_harness.js")

Arm = Literal["plain", "standby"]


@dataclass(frozen=True, slots=True)
class Program:
    """A program and its run.

    Attributes:
        files: The code: texts by path.
        payload: Standard input, and the content of $PAYLOAD_FILE.
        environment: Additional environment variables.
        encoding: The encoding of the strings in the job; latin1 allows invalid UTF-8.
        arguments: The command.
        idle_ms: How long the standby process waits for its job, ms.
        job: Whether the standby process gets a job.
    """

    files: Mapping[str, str]
    payload: str = "{}"
    environment: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf8"
    arguments: tuple[str, ...] = ("/usr/bin/node", "index.js")
    idle_ms: int = 0
    job: bool = True


def program(code: str, **changes: Any) -> Program:
    """Return a program of one file; `changes` are fields of `Program`, `more` are further files."""
    files = {"index.js": code, **changes.pop("more", {})}
    return Program(files, **changes)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended. The texts are bytes, decoded as latin1.

    Attributes:
        status: Exit status, or None after a signal.
        signal: The signal's name, or None.
        stdout: Its standard output.
        stderr: Its standard error.
    """

    status: int | None
    signal: str | None
    stdout: str
    stderr: str


class NodeBench:
    """A container with a harness in it.

    Args:
        requests: The harness's standard input.
        answers: Its standard output.
    """

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self._requests = requests
        self._answers = answers

    def run(self, program: Program, arm: Arm) -> Ended:
        """Run a program until it ends."""
        request = {
            "arm": arm,
            "files": dict(program.files),
            "payload": program.payload,
            "environment": dict(program.environment),
            "encoding": program.encoding,
            "arguments": program.arguments,
            "idle_ms": program.idle_ms,
            "job": program.job,
        }
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        answer = json.loads(self._answers.readline())
        return Ended(answer["status"], answer["signal"], answer["stdout"], answer["stderr"])


@contextmanager
def node_bench() -> Iterator[NodeBench]:
    """Make a bench; its container is removed afterwards."""
    places = [f"--tmpfs={place}:exec,mode=1777" for place in ("/work", "/input", "/tmp")]
    # The code is passed by argument: a remote Docker daemon could not mount this folder.
    command = ["docker", "run", "--rm", "--interactive", "--init", "--network=none", "--user=1000:1000"]
    command += [
        f"--memory={MEMORY}",
        *places,
        "--entrypoint=/usr/bin/node",
        IMAGE,
        "--eval",
        _HARNESS.read_text(),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdin is not None
        assert container.stdout is not None
        try:
            yield NodeBench(container.stdin, container.stdout)
        finally:
            container.stdin.close()
            container.wait()
