"""One call of `nanoagent exec`: runs a function here, passes its output on, and says how it ended."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from nanoagent.container.execution import RunControl
from nanoagent.dev.exec import changes, local_worker, summary
from nanoagent.dev.sender import language, message, package, variables
from nanoagent.model.errors import InvalidCall, PlatformError, ReturnToQueue
from nanoagent.model.job import Runtime
from nanoagent.model.result import NOT_STARTED, ErrorType
from nanoagent.supervisor import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nanoagent.config import LocalSettings
    from nanoagent.dev.exec.local_worker import LocalWorker
    from nanoagent.dev.sender.package import Package
    from nanoagent.model.result import Result

_STREAMS: Final = {wire.STDOUT: 1, wire.STDERR: 2}


class Exit(IntEnum):
    """The exit codes that are not those of the function; they are documented in docs/exec.md."""

    INVALID_CALL = 2
    TIMEOUT = 124  # as timeout(1)
    NOT_RUN = 125  # Docker or the machine failed, as `docker run`
    NOT_STARTED = 126  # the code is invalid, or could not be built
    INTERRUPTED = 130


_EXITS: Final = {ErrorType.TIMEOUT: Exit.TIMEOUT, ErrorType.INVALID_JOB: Exit.INVALID_CALL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of `nanoagent exec`.

    Attributes:
        code: A folder, a source file or a zip.
        runtime: The language; empty to find it by the entry file.
        payload: The value of `--input`.
        memory_mb: The memory limit, MiB.
        timeout_s: The time limit, seconds.
        network: The network of the run; empty for the value of NETWORK.
        model: The model of the run; empty for the value of AI_MODEL.
        env: Variables of the function, each as `NAME=VALUE`, or as `NAME` for the value in the environment.
        secrets: References to secrets, each as `NAME=REFERENCE`. They are refused.
        locale: `ko` or `en`; empty for the language of the shell.
        output: The folder for output files; None for a new temporary folder.
        watch: Whether to run again when the files change.
        as_json: Whether to print the result document instead of the output.
    """

    code: Path
    runtime: str = ""
    payload: str = "{}"
    memory_mb: int = 128
    timeout_s: float = 300
    network: str = ""
    model: str = ""
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    locale: str = ""
    output: Path | None = None
    watch: bool = False
    as_json: bool = False


def run(settings: LocalSettings, call: Call) -> int:
    """Run the function, and return the exit code. With `watch`, run it after each change until Ctrl-C."""
    try:
        runtime = _check_options(call)
        with _output_folder(call) as folder:
            if call.watch:
                return asyncio.run(_watch(settings, call, runtime, folder))
            with _prepared(settings, call, runtime) as prepared:
                return asyncio.run(_run_once(for_one_run(settings), call, prepared, folder))
    except InvalidCall as exc:
        _say_problems(exc)
        return Exit.INVALID_CALL
    except (PlatformError, ReturnToQueue) as exc:
        print(f"nanoagent: the function could not be run here: {exc}", file=sys.stderr)  # noqa: T201
        return Exit.NOT_RUN


def _say_problems(invalid: InvalidCall) -> None:
    problems = "\n  ".join(invalid.problems)
    print(f"nanoagent: the function was not run:\n  {problems}", file=sys.stderr)  # noqa: T201


@contextmanager
def _said_problems() -> Iterator[None]:
    """Print the problems of code that cannot be run now. The author is still writing it."""
    try:
        yield
    except InvalidCall as exc:
        _say_problems(exc)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A job that is ready to run: the code, the message, and a text that differs if code or input differ."""

    code: Package
    body: str
    version: str


@contextmanager
def _prepared(settings: LocalSettings, call: Call, runtime: Runtime | None) -> Iterator[_Prepared]:
    payload = message.read_input(call.payload)
    with package.packed(call.code, runtime, package.limits_of(settings)) as code:
        yield _Prepared(code, message.body(_fields(call, code), payload), f"{code.digest} {payload}")


def _check_options(call: Call) -> Runtime | None:
    """Refuse options that cannot be used; return the language, if it is given."""
    if call.watch and (call.as_json or call.payload == "-"):
        raise InvalidCall(["--watch: cannot be used with --json or with --input -"])
    if call.secrets:
        names = [pair.partition("=")[0] for pair in call.secrets]
        raise InvalidCall(
            [
                f"--secret {name}: exec has no access to AWS; give a value for tests: --env {name} (from this"
                f" environment) or --env {name}=VALUE"
                for name in names
            ]
        )
    if call.runtime and call.runtime not in set(Runtime):
        raise InvalidCall([f"--runtime {call.runtime}: is not one of {', '.join(Runtime)}"])
    return Runtime(call.runtime) if call.runtime else None


def for_one_run(settings: LocalSettings) -> LocalSettings:
    """Return the settings for one run: nothing is prepared that only later runs would need."""
    return settings.model_copy(
        update={f"warm_pool_{runtime}_size": 0 for runtime in Runtime} | {"python_bytecode": "never"}
    )


def _for_watch(settings: LocalSettings) -> LocalSettings:
    """Return the settings for many runs of changing code: a container waits for the next version.

    The containers of earlier versions are removed soon.
    """
    return settings.model_copy(update={"container_idle_seconds": 5, "python_bytecode": "never"})


def _fields(call: Call, code: Package) -> dict[str, Any]:
    """Return the fields of the job's message, except the input."""
    optional = {"network": call.network, "modelId": call.model, "env": variables.parsed(call.env)}
    return {
        "requestId": f"exec-{uuid.uuid4().hex[:12]}",
        "functionId": code.function_id,
        "runtime": code.runtime,
        "s3Key": code.key,
        "memoryMb": call.memory_mb,
        "timeoutMs": round(call.timeout_s * 1000),
        "locale": call.locale or language.of_shell(os.environ).locale,
        **{name: value for name, value in optional.items() if value},
    }


@contextmanager
def _output_folder(call: Call) -> Iterator[Path]:
    """Yield the folder for output files. A temporary folder is removed if it stays empty."""
    if call.output is not None:
        yield call.output.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="nanoagent-output-"))
    try:
        yield folder
    finally:
        with suppress(OSError):  # it has files
            folder.rmdir()


async def _run_once(settings: LocalSettings, call: Call, prepared: _Prepared, folder: Path) -> int:
    async with local_worker.opened(settings, folder) as worker:
        control = RunControl() if call.as_json else _live_control()
        answered = await worker.answer(prepared.code, prepared.body, control)
    if call.as_json:
        sys.stdout.write(f"{answered.document.decode()}\n")
    else:
        console = _console()
        _say_end(answered.result, call, console, always=console.is_terminal)
    return exit_code(answered.result)


async def _watch(settings: LocalSettings, call: Call, runtime: Runtime | None, folder: Path) -> int:
    """Run the function now and after each change of its files. Ctrl-C ends this with an exception."""
    console = _console()
    paths = [call.code, *([Path(call.payload[1:])] if call.payload.startswith("@") else [])]
    last = ""
    async with local_worker.opened(_for_watch(settings), folder) as worker:
        while True:
            seen = changes.state_of(paths)
            changed = asyncio.create_task(changes.wait_for_change(paths, seen))
            try:
                with _said_problems(), _prepared(settings, call, runtime) as prepared:
                    if prepared.version != last:
                        await _run_until_changed(worker, call, prepared, changed, console)
                        last = prepared.version
                await changed
            finally:
                changed.cancel()


async def _run_until_changed(
    worker: LocalWorker, call: Call, prepared: _Prepared, changed: asyncio.Task[None], console: Console
) -> None:
    """Run the function, but stop it when its files change."""
    answer = asyncio.create_task(worker.answer(prepared.code, prepared.body, _live_control()))
    try:
        await asyncio.wait({answer, changed}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not answer.done():
            answer.cancel()
            await asyncio.wait({answer})
    if answer.cancelled():
        console.print("The files have changed; the run was stopped.", style="yellow")
        return
    _say_end(answer.result().result, call, console, always=True)


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _live_control() -> RunControl:
    """Return the control of a run whose whole output is printed while it runs."""
    return RunControl(live=wire.LiveMode.LOSSLESS, on_output=_pass_on)


def _pass_on(stream: bytes, _position: int, output: bytes, _printed: int | None = None) -> None:
    """Write output of the function to the same stream of this process, unchanged."""
    descriptor = _STREAMS[stream]
    while output:
        try:
            output = output[os.write(descriptor, output) :]
        except OSError:  # nobody reads it, as with a closed pipe; the function runs to its end
            return


def _say_end(result: Result, call: Call, console: Console, *, always: bool) -> None:
    """Print the errors of the compiler and the summary; after success, only if `always` or with a hint."""
    if result.exit_code == NOT_STARTED and result.stderr:
        print(result.stderr, file=sys.stderr)  # noqa: T201 - errors of the compiler
    if result.error_type is not None or result.hint is not None or always:
        for line in summary.lines(result, call.memory_mb):
            console.print(line)


def exit_code(result: Result) -> int:
    """Return the exit code of the function, or the code for a function that has no useful one."""
    if result.error_type in _EXITS:
        return _EXITS[result.error_type]
    if result.error_type is not None and result.exit_code == NOT_STARTED:
        return Exit.NOT_STARTED
    return result.exit_code or int(result.error_type is not None)
