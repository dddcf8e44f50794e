"""The command `nanoagent invoke`: runs a deployed function once, and passes its output on."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from contextlib import nullcontext
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from nanoagent.aws import clients as aws
from nanoagent.dev.exec import summary
from nanoagent.dev.follower import live
from nanoagent.dev.functions.output import check_function_id, exit_of, no_function
from nanoagent.dev.functions.s3_records import S3Records
from nanoagent.dev.jobs import outputs
from nanoagent.dev.jobs.download import NotWritten
from nanoagent.dev.sender import delivery, dev, language, message, stages, terminal, variables
from nanoagent.dev.sender.command import NO_INPUT, shown
from nanoagent.dev.sender.stages import Stage
from nanoagent.model import result as results_of
from nanoagent.model.errors import InvalidCall, PlatformError, StorageError, one_line
from nanoagent.model.function_record import InvalidRecord
from nanoagent.model.result import ErrorType
from nanoagent.model.text import LOCALES

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from nanoagent.config import Settings
    from nanoagent.dev.follower.live import LiveOutput
    from nanoagent.dev.sender.delivery import Results
    from nanoagent.model.function_record import Version
    from nanoagent.model.result import Result


class Exit(IntEnum):
    """The exit codes; they are documented in docs/deploying.md. Ctrl-C ends with 130."""

    SUCCESS = 0
    NOT_SUCCESSFUL = 1  # the function failed, or could not be run
    INVALID_CALL = 2  # nothing was sent
    SERVICE_FAILED = 3
    NO_RESULT = 4  # no result yet; or there is no such function
    TIMEOUT = 124  # the function exceeded its time limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of `nanoagent invoke`.

    Attributes:
        function_id: The function.
        payload: The value of `--input`.
        version: The number of the version; None for the current one.
        env: More variables for this job, each as `NAME=VALUE`.
        wait_s: The longest time to wait for the result, seconds; 0 for no wait.
        locale: `ko` or `en`; empty for the language of the shell.
        output: The folder into which output files are downloaded; None to print their links.
        is_following: Whether to print the output while the function runs.
        as_json: Whether to print the result document instead of the output.
        env_file: The value of `--env-file`, for the commands that are proposed.
        settings_file: The file with the settings.
    """

    function_id: str
    payload: str = NO_INPUT
    version: int | None = None
    env: tuple[str, ...] = ()
    wait_s: float = 60
    locale: str = ""
    output: Path | None = None
    is_following: bool = False
    as_json: bool = False
    env_file: Path = dev.DEFAULT
    settings_file: Path = dev.DEFAULT


def invoke(settings: Settings, call: Call) -> int:
    """Send a job for a deployed function, wait for its result, and return the exit code."""
    invocation = _Invocation(settings, call)
    try:
        return asyncio.run(invocation.run())
    except (InvalidCall, InvalidRecord) as exc:
        problems = exc.problems if isinstance(exc, InvalidCall) else [str(exc)]
        _say("\n  ".join(["nanoagent: nothing was sent:", *problems]))
        return Exit(exit_of(exc))
    except PlatformError as exc:
        _say(invocation.after_failure(exc))
        _say(f"nanoagent: {stages.service_failed(exc, call.settings_file)}")
        return Exit.SERVICE_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say(f"\n{invocation.after_interruption()}")
        raise


class _Invocation:
    """One call of the command.

    Args:
        settings: The settings.
        call: The call.
    """

    def __init__(self, settings: Settings, call: Call) -> None:
        self._settings = settings
        self._call = call
        self._request_id = f"invoke-{uuid.uuid4().hex[:12]}"
        self._stage = Stage.NOT_SENT
        self._live: LiveOutput | None = None

    async def run(self) -> Exit:
        """Carry out the command.

        Raises:
            NoFunction: There is no such function.
            InvalidCall: An argument is invalid, or there is no such version.
            InvalidRecord: The record of the function cannot be used.
            PlatformError: A service failed.
        """
        _check(self._call)
        payload = message.read_input(self._call.payload)
        async with aws.AwsClients(self._settings.aws_region) as clients:
            version = await self._version(clients)
            body = message.body(self._fields(version), payload)
            async with delivery.results(self._settings) as results, self._live_output() as self._live:
                if self._live is not None:
                    await self._live.announce()
                self._stage = Stage.SENDING
                await delivery.enqueue(clients, self._settings.sqs_queue_url, self._request_id, body)
                self._stage = Stage.SENT
                await results.mark_sent(self._request_id)
                name = one_line(self._call.function_id)
                _say(f"Request {self._request_id}: {name}, version {version.number}.")
                if not self._call.wait_s:
                    _say(stages.next_commands(self._request_id, self._call.env_file))
                    return Exit.SUCCESS
                found = await self._result(results)
        if found is None:
            since = None if self._live is None else self._live.since
            _say(f"The job continues.\n{stages.next_commands(self._request_id, self._call.env_file, since)}")
            _say(f"nanoagent: {stages.no_result_within(self._call.wait_s)}")
            return Exit.NO_RESULT
        if self._call.output is None:
            return self._show(found, version)
        files = await self._downloaded(found, self._call.output)
        if not self._call.as_json:  # the summary names the files that were written
            found = found | {"outputFiles": [_link(file) for file in files]}
        code = self._show(found, version)
        lost = [f"{file.name}: {file.problem}" for file in files if file.problem is not None]
        for problem in lost:
            _say(f"nanoagent: output {one_line(problem)}")
        return Exit.SERVICE_FAILED if lost and code is Exit.SUCCESS else code

    async def _downloaded(self, document: dict[str, Any], folder: Path) -> list[outputs.Output]:
        """Download the output files of a result. Existing files are replaced, as by `nanoagent exec`."""
        as_json = self._call.as_json
        call = outputs.Call(request_id=self._request_id, folder=folder, force=True, as_json=as_json)
        try:
            return await outputs.of_result(self._settings, call, document)
        except NotWritten as exc:
            raise StorageError(f"--output: {exc}") from exc

    async def _result(self, results: Results) -> dict[str, Any] | None:
        """Return the document of the result; None if the wait has ended without one.

        With `--follow`, the output of the function is printed meanwhile.
        """
        if self._live is not None:
            return await self._live.result(results, self._call.wait_s)
        return await results.wait(self._request_id, self._call.wait_s)

    def _live_output(self) -> AbstractAsyncContextManager[LiveOutput | None]:
        return live.of_job(self._settings, self._request_id) if self._call.is_following else nullcontext()

    def _show(self, document: dict[str, Any], version: Version) -> Exit:
        """Print a result, and return the exit code. Output that `--follow` has printed is not repeated."""
        memory_mb = version.settings.memory_mb
        if self._live is None:
            return _show(document, memory_mb, as_json=self._call.as_json)
        self._live.show_end(document, memory_mb)
        result = _decoded(document)
        return _exit_code_of_newer(document) if result is None else exit_code(result)

    async def _version(self, clients: aws.AwsClients) -> Version:
        """Return the version to run.

        Raises:
            NoFunction: There is no such function.
            InvalidCall: There is no such version.
            InvalidRecord: The record cannot be used.
        """
        store = S3Records(await clients.s3(), self._settings.s3_code_bucket)
        stored = await store.read(self._call.function_id)
        if stored is None:
            raise no_function(self._call.function_id, self._settings.s3_code_bucket)
        return stored.record.version(self._call.version or stored.record.current)

    def _fields(self, version: Version) -> dict[str, Any]:
        """Return the fields of the job's message, except the input."""
        fields = {
            "requestId": self._request_id,
            "functionId": self._call.function_id,
            "s3Key": version.key,
            "locale": self._call.locale or language.of_shell(os.environ).locale,
            **version.settings.job_fields(),
        }
        env = fields.get("env", {}) | variables.parsed(self._call.env)
        return fields | ({"env": env} if env else {})

    def after_failure(self, error: PlatformError) -> str:
        """Return what has happened to the job when a service fails."""
        if self._stage is Stage.SENDING and not delivery.may_have_arrived(error):
            self._stage = Stage.NOT_SENT
        return self.after_interruption()

    def after_interruption(self) -> str:
        """Return what has happened to the job when the command stops here."""
        since = None if self._live is None else self._live.since
        return stages.after_interruption(self._stage, self._request_id, self._call.env_file, since)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - a command's output


def _check(call: Call) -> None:
    """Refuse options that cannot be used, and make the folder for output files.

    Raises:
        InvalidCall: An option is invalid.
    """
    check_function_id(call.function_id)
    problems = []
    if call.locale not in ("", *LOCALES):
        problems.append(f"--locale {call.locale}: is not one of {', '.join(LOCALES)}")
    if not call.wait_s >= 0:  # NaN, too
        problems.append(f"--wait {call.wait_s:g}: is not a number of seconds")
    if call.is_following:
        problems += live.problems(as_json=call.as_json, wait_s=call.wait_s)
    if call.version is not None and call.version < 1:
        problems.append(f"--version {call.version}: is not the number of a version")
    if call.output is not None and not problems:
        try:
            call.output.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            problems.append(f"--output {call.output}: {exc.strerror}")
    if problems:
        raise InvalidCall(problems)


# --- the result


def _link(file: outputs.Output) -> str:
    """Return the URL of a file that was downloaded, and the link of another file."""
    return file.link if file.path is None else Path(file.path).absolute().as_uri()


def _show(document: dict[str, Any], memory_mb: int, *, as_json: bool) -> Exit:
    """Print a result, and return the exit code."""
    result = _decoded(document)
    if result is None:
        print(json.dumps(document) if as_json else shown(document))  # noqa: T201
        return _exit_code_of_newer(document)
    if as_json:
        print(json.dumps(document, ensure_ascii=False))  # noqa: T201
    else:
        _pass_on(result.stdout, sys.stdout)
        _pass_on(result.stderr, sys.stderr)
        summary.show(result, memory_mb, lambda: _end_line(result.stderr))
    return exit_code(result)


def _decoded(document: dict[str, Any]) -> Result | None:
    """Return a result; None if it is that of a newer worker, and cannot be read."""
    try:
        return results_of.decode(json.dumps(document))
    except msgspec.MsgspecError:
        return None


def _pass_on(output: str, stream: TextIO) -> None:
    """Write the output of the function, unchanged in a pipe. A terminal gets no control characters."""
    stream.write(terminal.clean(output) if stream.isatty() else output)
    stream.flush()


def _end_line(output: str) -> None:
    if output and not output.endswith("\n"):
        _say("")


def _exit_code_of_newer(document: dict[str, Any]) -> Exit:
    return Exit.SUCCESS if document.get("status") == "SUCCESS" else Exit.NOT_SUCCESSFUL


def exit_code(result: Result) -> Exit:
    """Return the exit code for a result."""
    if result.error_type is ErrorType.TIMEOUT:
        return Exit.TIMEOUT
    return Exit.SUCCESS if result.error_type is None else Exit.NOT_SUCCESSFUL
