"""One call of `nanoagent retry`: sends the job of a capsule again, with a new request ID."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoagent.aws import clients as aws
from nanoagent.dev.replay import preparation, source
from nanoagent.dev.replay.source import NoCapsule, Services
from nanoagent.dev.sender import command as sender
from nanoagent.dev.sender import delivery, dev, stages, variables
from nanoagent.dev.sender.stages import Exit, Stage
from nanoagent.model.capsule import InvalidCapsule
from nanoagent.model.errors import InvalidCall, PlatformError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nanoagent.config import Settings
    from nanoagent.model.capsule import Capsule


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of `nanoagent retry`.

    Attributes:
        request_id: The request to send again; also a path or an `s3://` URL of its capsule.
        env: Variables of the function, each as `NAME=VALUE`.
        wait_s: The longest time to wait for the result, seconds; 0 for no wait.
        as_json: Whether to print JSON.
        env_file: The value of `--env-file`, for the command that is proposed.
        settings_file: The file with the settings.
    """

    request_id: str
    env: tuple[str, ...] = ()
    wait_s: float = 0
    as_json: bool = False
    env_file: Path = dev.DEFAULT
    settings_file: Path = dev.DEFAULT


@dataclass(slots=True)
class _Report:
    """The output of the command."""

    as_json: bool
    fields: dict[str, Any]

    def end(self, code: Exit, *, result: dict[str, Any] | None = None, error: str | None = None) -> Exit:
        """Print the result or the error; return the exit code."""
        if self.as_json:
            print(json.dumps(self.fields | {"result": result, "error": error}))  # noqa: T201
        elif error is not None:
            print(f"nanoagent: {one_line(error)}", file=sys.stderr)  # noqa: T201
        elif result is not None:
            print(sender.shown(result))  # noqa: T201
        return code


def retry(settings: Settings, call: Call) -> int:
    """Send the job again, and return the exit code."""
    report = _Report(call.as_json, {"requestId": None, "retryOf": None, "stage": Stage.NOT_SENT})
    try:
        return asyncio.run(_retry(settings, call, report))
    except InvalidCall as exc:
        return report.end(Exit.INVALID_CALL, error=f"nothing was sent: {'; '.join(exc.problems)}")
    except InvalidCapsule as exc:
        return report.end(Exit.INVALID_CALL, error=f"nothing was sent: {call.request_id}: {exc}")
    except NoCapsule as exc:
        return report.end(Exit.NO_RESULT, error=f"nothing was sent: {exc}")
    except PlatformError as exc:
        error = stages.service_failed(exc, call.settings_file)
        return report.end(Exit.SERVICE_FAILED, error=f"{report.fields['stage']}: {error}")


async def _retry(settings: Settings, call: Call, report: _Report) -> int:
    given = variables.parsed(call.env)
    services = Services.of(settings)
    with tempfile.TemporaryDirectory(prefix="nanoagent-retry-") as folder:
        found = await source.find(
            call.request_id, Path(folder), lambda: services, services.max_code_bytes, with_code=False
        )
    capsule = found.contents.capsule
    request_id = f"retry-{uuid.uuid4().hex[:12]}"
    body = message_of(capsule, request_id, given)
    report.fields |= {"requestId": request_id, "retryOf": capsule.request_id}
    if call.wait_s:
        async with delivery.results(settings) as results:
            await _send(settings, request_id, body, report)
            _say_sent(capsule, request_id, call)
            answer = await results.wait(request_id, call.wait_s)
        if answer is None:
            error = stages.no_result_within(call.wait_s)
            return report.end(Exit.NO_RESULT, error=error)
        code = Exit.SUCCESS if answer.get("status") == "SUCCESS" else Exit.NOT_SUCCESSFUL
        return report.end(code, result=answer)
    await _send(settings, request_id, body, report)
    _say_sent(capsule, request_id, call)
    return report.end(Exit.SUCCESS)


async def _send(settings: Settings, request_id: str, body: str, report: _Report) -> None:
    report.fields["stage"] = Stage.SENDING
    async with aws.AwsClients(settings.aws_region) as clients:
        try:
            await delivery.enqueue(clients, settings.sqs_queue_url, request_id, body)
        except PlatformError as exc:
            if not delivery.may_have_arrived(exc):
                report.fields["stage"] = Stage.NOT_SENT
            raise
    report.fields["stage"] = Stage.SENT


def _say_sent(capsule: Capsule, request_id: str, call: Call) -> None:
    if not call.as_json:
        settings = stages.settings_option(call.env_file)
        print(  # noqa: T201
            f"Sent {capsule.request_id} again as {request_id}.\n"
            f"  its result:  nanoagent result {request_id} --wait 60{settings}",
            file=sys.stderr,
            flush=True,
        )


def message_of(capsule: Capsule, request_id: str, given: Mapping[str, str]) -> str:
    """Return the message that sends the job of a capsule again.

    Args:
        capsule: The capsule.
        request_id: The new request ID.
        given: Values of environment variables.

    Raises:
        InvalidCall: The capsule lacks a part of the message, or the message is too large.
    """
    if capsule.job is None:
        raise InvalidCall(
            [f"the message of {capsule.request_id} was not a valid job; correct it and send it"]
        )
    if lacking := [part for part in ("input", "message") if part in capsule.omitted]:
        raise InvalidCall([f"the capsule lacks the {lacking[0]}, which was too large; use `nanoagent send`"])
    unknown = [name for name, value in capsule.env.items() if value is None and name not in given]
    if unknown:
        options = " ".join(f"--env {name}=VALUE" for name in unknown)
        names = ", ".join(unknown)
        raise InvalidCall(
            [f"the values of {names} are unknown, because capsules have no values; add {options}"]
        )
    fields = capsule.message | {"requestId": request_id}
    if env := {**capsule.env, **given}:
        fields["env"] = env
    return preparation.joined(fields, capsule.input)
