"""The command `nanoagent send`: its steps, its output and its exit codes.

Results go to standard output, all other texts to standard error. With `--json`, standard output has one JSON
document, and this module writes nothing to standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nanoagent.aws import clients as aws
from nanoagent.dev.follower import live
from nanoagent.dev.sender import delivery, dev, language, message, package, packing_report, stages
from nanoagent.dev.sender.stages import Exit, Stage
from nanoagent.model.errors import InvalidCall, PlatformError, one_line
from nanoagent.model.job import MAX_TIMEOUT_MS, MIN_MEMORY_MB, Reuse, Runtime
from nanoagent.model.text import LOCALES

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.config import Settings
    from nanoagent.dev.follower.live import LiveOutput
    from nanoagent.dev.sender.delivery import Results
    from nanoagent.dev.sender.package import Package

_FUNCTION_ID_CHARACTERS: Final = 256
_INPUT_FILE: Final = "input.json"
# Messages about a missing module or header, of Python, Node.js, g++ and go.
_MISSING_FILE: Final = re.compile(
    r"ModuleNotFoundError|Cannot find module|fatal error: .*No such file|undefined: |undefined reference"
)
NO_INPUT: Final = "{}"
"""The default of `--input`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of `nanoagent send`.

    Attributes:
        code: A folder, a source file or a zip.
        runtime: The language; empty to find it by the entry file.
        payload: The value of `--input`.
        function_id: The function ID; empty to derive it from the path.
        memory_mb: The memory limit of the job, MiB.
        timeout_ms: The time limit of the job, ms.
        wait_s: The longest time to wait for the result, seconds; 0 for no wait.
        locale: `ko` or `en`; empty for the language of the shell.
        reuse: `imports`; empty to reuse nothing.
        follow_outside_links: Whether links to targets outside the folder are replaced with the targets.
        is_following: Whether to print the output while the job runs, and a summary instead of the result.
        as_json: Whether the output is JSON.
        env_file: The value of `--env-file`, for the commands that are proposed.
        settings_file: The file with the settings.
    """

    code: Path
    runtime: str = ""
    payload: str = NO_INPUT
    function_id: str = ""
    memory_mb: int = 128
    timeout_ms: int = 300_000
    wait_s: float = 60
    locale: str = ""
    reuse: str = ""
    follow_outside_links: bool = False
    is_following: bool = False
    as_json: bool = False
    env_file: Path = dev.DEFAULT
    settings_file: Path = dev.DEFAULT


@dataclass(slots=True)
class Report:
    """The output of a command: lines of text during the command, or one JSON document at its end.

    Attributes:
        as_json: Whether the output is JSON.
        stage: The progress of the job.
        fields: Further fields of the document.
        live: The output of the job, if this command follows it.
    """

    as_json: bool
    stage: Stage = Stage.NOT_SENT
    fields: dict[str, Any] = field(default_factory=dict)
    live: LiveOutput | None = None

    @property
    def since(self) -> str | None:
        """The position for `stages.next_commands`."""
        return None if self.live is None else self.live.since

    def say(self, text: str) -> None:
        """Print a line to standard error, unless the output is JSON."""
        if not self.as_json:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - a command's output

    def end(self, code: Exit, *, result: dict[str, Any] | None = None, error: str | None = None) -> Exit:
        """Print the result or the error, as text or as the JSON document; return the exit code."""
        if self.as_json:
            print(json.dumps(self.fields | {"stage": self.stage, "result": result, "error": error}))  # noqa: T201
        elif result is not None:
            print(shown(result))  # noqa: T201
        elif error is not None:
            print(f"nanoagent: {error}", file=sys.stderr)  # noqa: T201
        return code


def shown(result: dict[str, Any]) -> str:
    """Return a result as JSON without control characters, because the output of a program is untrusted.

    JSON escapes the first 32 control characters. It does not escape those from U+007F on, marks that
    change the direction of writing, or lone surrogates. Lone surrogates cannot be printed.
    """
    text = json.dumps(result, indent=2, ensure_ascii=False)
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in text
    )


# --- send


def send(settings: Settings, call: Call) -> int:
    """Pack and upload code, send one job, wait for its result, and return the exit code."""
    report = Report(call.as_json)
    request_id = ""
    try:
        runtime = _check_options(call)
        payload = message.read_input(call.payload)
        limits, follows = package.limits_of(settings), call.follow_outside_links
        with package.packed(call.code, runtime, limits, follow_outside_links=follows) as code:
            fields = _fields(call, code)
            request_id = fields["requestId"]
            body = message.body(fields, payload)
            report.fields = _report_fields(fields, settings, code)
            _say_package(report, call, code, fields)
            return asyncio.run(_deliver(settings, call, code, request_id, body, report))
    except InvalidCall as exc:
        problems = "\n  ".join(exc.problems)
        return report.end(Exit.INVALID_CALL, error=f"nothing was sent:\n  {problems}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        report.say(f"\n{stages.after_interruption(report.stage, request_id, call.env_file, report.since)}")
        if call.as_json:
            report.end(Exit.NO_RESULT, error="interrupted")
        raise


def _check_options(call: Call) -> Runtime | None:
    """Refuse options that no worker would accept; return the runtime."""
    problems = []
    if call.runtime not in ("", *Runtime):
        problems.append(f"--runtime {call.runtime}: is not one of {', '.join(Runtime)}")
    if call.locale not in ("", *LOCALES):
        problems.append(f"--locale {call.locale}: is not one of {', '.join(LOCALES)}")
    if call.memory_mb < MIN_MEMORY_MB:
        problems.append(f"--memory-mb {call.memory_mb}: is below {MIN_MEMORY_MB}")
    if call.reuse and call.reuse not in set(Reuse):
        problems.append(f"--reuse {call.reuse}: is not one of {', '.join(Reuse)}")
    if not 1 <= call.timeout_ms <= MAX_TIMEOUT_MS:
        problems.append(f"--timeout-ms {call.timeout_ms}: is not from 1 to {MAX_TIMEOUT_MS}")
    if not call.wait_s >= 0:  # NaN, too
        problems.append(f"--wait {call.wait_s:g}: is not a number of seconds")
    if call.is_following:
        problems += live.problems(as_json=call.as_json, wait_s=call.wait_s)
    if len(call.function_id) > _FUNCTION_ID_CHARACTERS or not call.function_id.isprintable():
        problems.append(f"--function-id: is not 1-{_FUNCTION_ID_CHARACTERS} printable characters")
    if problems:
        raise InvalidCall(problems)
    return Runtime(call.runtime) if call.runtime else None


def _fields(call: Call, code: Package) -> dict[str, Any]:
    """Return the fields of the message, except the input."""
    return {
        "requestId": f"send-{uuid.uuid4().hex[:12]}",
        "functionId": call.function_id or code.function_id,
        "runtime": code.runtime,
        "s3Key": code.key,
        "memoryMb": call.memory_mb,
        "timeoutMs": call.timeout_ms,
        "locale": call.locale or language.of_shell(os.environ).locale,
        **({"reuse": call.reuse} if call.reuse else {}),
    }


def _report_fields(fields: dict[str, Any], settings: Settings, code: Package) -> dict[str, Any]:
    """Return the fields of the `--json` document that are known before the job is sent."""
    return {
        **{name: fields[name] for name in ("requestId", "functionId", "runtime", "locale", "s3Key")},
        "s3Bucket": settings.s3_code_bucket,
        "code": code.as_json(),
    }


def _say_package(report: Report, call: Call, code: Package, fields: dict[str, Any]) -> None:
    report.say(f"Request {fields['requestId']}: function {one_line(fields['functionId'])}, {code.runtime}.")
    for line in packing_report.lines(call.code, code, "send"):
        report.say(line)
    shell = language.of_shell(os.environ)
    if not call.locale:
        other = "ko" if shell.locale == "en" else "en"
        report.say(f"Hints and errors are in {shell.name} ({shell.source}); --locale {other} changes that.")


async def _deliver(
    settings: Settings, call: Call, code: Package, request_id: str, body: str, report: Report
) -> int:
    """Upload the code, send the job, and wait for its result. After a failure, print the stage of the job."""
    try:
        async with AsyncExitStack() as opened:
            results = await opened.enter_async_context(delivery.results(settings))
            clients = await opened.enter_async_context(aws.AwsClients(settings.aws_region))
            bucket = settings.s3_code_bucket
            is_new = await delivery.upload(clients, bucket, code)
            report.say(f"{'Uploaded' if is_new else 'Already uploaded:'} {code.key}.")
            if call.is_following:  # after the upload, which may take longer than the lease of a follower
                report.live = await opened.enter_async_context(live.of_job(settings, request_id))
                await report.live.announce()
            report.stage = Stage.SENDING
            await delivery.enqueue(clients, settings.sqs_queue_url, request_id, body)
            report.stage = Stage.SENT
            await results.mark_sent(request_id)
            if not call.wait_s:
                report.say(f"Sent.\n{stages.next_commands(request_id, call.env_file)}")
                return report.end(Exit.SUCCESS)
            found = await _result(results, request_id, call, report)
            if found is None:
                return _not_ended(request_id, call, report)
            exit_code = _ended(found, call, report)
            for tip in _tips(found, call):
                report.say(tip)
            return exit_code
    except PlatformError as exc:
        if report.stage is Stage.SENDING and not delivery.may_have_arrived(exc):
            report.stage = Stage.NOT_SENT
        report.say(stages.after_interruption(report.stage, request_id, call.env_file, report.since))
        return report.end(Exit.SERVICE_FAILED, error=stages.service_failed(exc, call.settings_file))


async def _result(results: Results, request_id: str, call: Call, report: Report) -> dict[str, Any] | None:
    """Wait for the result, and print the output of the job meanwhile if the call says so."""
    if report.live is None:
        report.say(f"Sent; waiting up to {call.wait_s:g} s for the result. Ctrl-C ends only the wait.")
        return await results.wait(request_id, call.wait_s)
    report.say(f"Sent; following the job for up to {call.wait_s:g} s. Ctrl-C ends only the following.")
    return await report.live.result(results, call.wait_s)


def _ended(found: dict[str, Any], call: Call, report: Report) -> Exit:
    code = Exit.SUCCESS if found.get("status") == "SUCCESS" else Exit.NOT_SUCCESSFUL
    if report.live is not None:
        report.live.show_end(found, call.memory_mb)
        return code
    return report.end(code, result=found)


def _tips(found: dict[str, Any], call: Call) -> list[str]:
    """Return sentences about likely mistakes, for a job that did not succeed."""
    if found.get("status") == "SUCCESS":
        return []
    tips = []
    example = (call.code if call.code.is_dir() else call.code.parent) / _INPUT_FILE
    if call.payload == NO_INPUT and package.is_folder_or_source(call.code) and example.is_file():
        tips.append(
            f"The job had no input. To send the file next to the code: --input @{shlex.quote(str(example))}"
        )
    messages = f"{found.get('errorMessage')} {found.get('stderr')}"
    if _MISSING_FILE.search(messages) and package.has_other_sources(call.code):
        tips.append(packing_report.sent_alone(call.code, "send"))
    if found.get("capsule"):
        settings = stages.settings_option(call.env_file)
        tips.append(f"To run it again on this machine: nanoagent replay {found['requestId']}{settings}")
    return tips


def _not_ended(request_id: str, call: Call, report: Report) -> Exit:
    report.say(f"The job continues.\n{stages.next_commands(request_id, call.env_file, report.since)}")
    return report.end(Exit.NO_RESULT, error=stages.no_result_within(call.wait_s))
