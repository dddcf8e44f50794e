"""A container of the Python image that runs programs plainly and in children of a zygote, to compare them."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

IMAGE = os.environ.get("PYTHON_IDENTITY_IMAGE", "nanoagent-python:latest")
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PAYLOAD_FILE": "/input/payload.json",
    "PAYLOAD": '{"a": "ä"}',
}
_HARNESS = Path(__file__).with_name("identity_harness.py")
_UNPRIVILEGED = ("--user", "1234567:1234567", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
# The supervisor has these capabilities in its user namespace. Here they are those of the container.
_WITH_NAMESPACES = (
    *("--cap-drop", "ALL", "--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--cap-add", "SETPCAP"),
    *("--cap-add", "KILL", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
    *("--env", "NAMESPACES=1", "--tmpfs=/usr/local/lib/python3.13/dist-packages"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: The wait status, as from waitpid(2).
        stdout: The whole standard output.
        stderr: The whole standard error.
    """

    status: int
    stdout: bytes
    stderr: bytes


class Interpreters:
    """The harness in its container.

    Args:
        harness: The client process of the harness.
    """

    def __init__(self, harness: subprocess.Popen[str]) -> None:
        self._harness = harness

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request of identity_harness.py and return its answer."""
        assert self._harness.stdin is not None
        assert self._harness.stdout is not None
        print(json.dumps(request), file=self._harness.stdin, flush=True)
        answer = self._harness.stdout.readline()
        assert answer, f"the harness ended at {request}"
        parsed: dict[str, Any] = json.loads(answer)
        return parsed

    def run(
        self,
        how: str,
        files: Mapping[str, bytes],
        *,
        arguments: Sequence[str] = ("/usr/bin/python3", "main.py"),
        environment: Mapping[str, str] = ENVIRONMENT,
        payload: str = '{"a": "ä"}',
    ) -> Outcome:
        """Run a program `plain`, or in a child of the `zygote` or of the `importer`."""
        answer = self.ask(
            do=how,
            files={name: base64.b64encode(content).decode() for name, content in files.items()},
            payload=payload,
            environment=dict(environment),
            arguments=list(arguments),
        )
        stdout, stderr = (base64.b64decode(answer[name]) for name in ("stdout", "stderr"))
        return Outcome(answer["status"], stdout, stderr)

    def install(self, files: Mapping[str, str], copies: Sequence[str], imports: str) -> int:
        """Put packages into the folder of all programs, and start an importer for them.

        Args:
            files: The files of packages.
            copies: Modules of the image, to be copied.
            imports: The import statements.

        Returns:
            A value of `ImportsState`.
        """
        encoded = {name: base64.b64encode(text.encode()).decode() for name, text in files.items()}
        state: int = self.ask(do="install", files=encoded, copies=list(copies), imports=imports)["state"]
        return state


@contextmanager
def interpreters(*, namespaces: bool = False, image: str = IMAGE) -> Iterator[Interpreters]:
    """Start a container with a zygote. `namespaces`: each child gets a PID namespace, as in a sandbox."""
    tmpfs = [
        f"--tmpfs={folder}:exec,mode=1777,size=400m" for folder in ("/work", "/tmp", "/output", "/input")
    ]
    name = f"nanoagent-identity-{secrets.token_hex(4)}"
    command = [
        "docker",
        "run",
        "--rm",
        "--interactive",
        "--name",
        name,
        "--network",
        "none",
        "--read-only",
        *tmpfs,
    ]
    command += _WITH_NAMESPACES if namespaces else _UNPRIVILEGED
    command += ["--entrypoint", "/usr/bin/python3", image, "-c", _HARNESS.read_text()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as harness:
        try:
            yield Interpreters(harness)
        finally:
            subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)
