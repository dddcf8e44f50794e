"""One call of `nanoagent replay`: finds a capsule, runs its job here, and compares the results."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from nanoagent.container.execution import RunControl
from nanoagent.dev.exec import command as execution
from nanoagent.dev.exec import local_worker
from nanoagent.dev.replay import bundle, difference, preparation, report, source
from nanoagent.dev.replay.source import CodeNotReadable, NoCapsule, Services
from nanoagent.dev.sender import package, variables
from nanoagent.dev.sender.package import Package
from nanoagent.model import capsule as capsules
from nanoagent.model.capsule import InvalidCapsule
from nanoagent.model.errors import InvalidCall, PlatformError, ReturnToQueue, one_line
from nanoagent.model.result import ErrorType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nanoagent.config import LocalSettings
    from nanoagent.dev.replay.bundle import Contents
    from nanoagent.dev.replay.difference import Difference
    from nanoagent.dev.replay.source import Found
    from nanoagent.model.capsule import Capsule
    from nanoagent.model.job import Runtime
    from nanoagent.model.result import Result


class Exit(IntEnum):
    """The exit codes besides those of `difference.Verdict`; docs/replay.md has all of them."""

    SAVED = 0  # with --save
    INVALID_CALL = 2  # arguments or settings are invalid, or the capsule is
    SERVICE_FAILED = 3  # S3, Docker or this machine failed
    NO_CAPSULE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of `nanoagent replay`.

    Attributes:
        capsule: A path, a request ID or an `s3://` URL.
        code: Code to run instead of that of the job; None for the code of the job.
        env: Variables of the function, each as `NAME=VALUE`.
        network: The network of the run; empty for that of the job.
        output: The folder for output files; None to discard them.
        save: The zip in which the capsule and its code are saved, instead of a run; None to run.
        as_json: Whether to print JSON.
    """

    capsule: str
    code: Path | None = None
    env: tuple[str, ...] = ()
    network: str = ""
    output: Path | None = None
    save: Path | None = None
    as_json: bool = False


def replay(settings: LocalSettings, call: Call, services: Callable[[], Services]) -> int:
    """Run the job of a capsule here, or save the capsule; return the exit code.

    Args:
        settings: The settings of this machine.
        call: The arguments.
        services: Reads the settings of S3. It is called only if S3 is asked.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="nanoagent-replay-") as folder:
            return asyncio.run(_replay(settings, call, services, Path(folder)))
    except InvalidCall as exc:
        return _fail(Exit.INVALID_CALL, "; ".join(exc.problems))
    except InvalidCapsule as exc:
        return _fail(Exit.INVALID_CALL, f"{call.capsule}: {exc}")
    except NoCapsule as exc:
        return _fail(Exit.NO_CAPSULE, str(exc))
    except (PlatformError, ReturnToQueue, CodeNotReadable) as exc:
        return _fail(Exit.SERVICE_FAILED, str(exc))


def _fail(code: Exit, error: str) -> Exit:
    from nanoagent.telemetry import logs  # noqa: PLC0415 - structlog is slow to import, and rarely needed here

    print(f"nanoagent: {one_line(logs.without_secrets(error))}", file=sys.stderr)  # noqa: T201
    return code


async def _replay(settings: LocalSettings, call: Call, services: Callable[[], Services], folder: Path) -> int:
    given = variables.parsed(call.env)
    largest = package.limits_of(settings).zip_bytes
    found = await source.find(call.capsule, folder, services, largest, with_code=call.code is None)
    capsule = found.contents.capsule
    if call.save is not None:
        bundle.write(call.save, found.contents)
        parts = " and its code" if found.contents.code is not None else ""
        print(f"Saved the capsule{parts} to {call.save}", file=sys.stderr)  # noqa: T201
        return Exit.SAVED
    env, missing = preparation.environment(capsule, given)
    recordings = _recordings(folder, found.contents)
    changed = preparation.settings_for(settings, capsule, call.network, recordings)
    outputs = call.output.absolute() if call.output else folder / "outputs"
    with _code(call, capsule, found.contents, changed) as code:
        body = preparation.body(capsule, None if code is None else code.key, env, call.network)
        async with local_worker.opened(execution.for_one_run(changed), outputs) as worker:
            notes = [*found.notes, *_notes(call, found, missing, changed, worker.image_ids)]
            answered = await worker.answer(code, body, RunControl())
    here = _masked(answered.result, env)
    recorded = capsule.result
    names = (
        _names(recorded.output_files, f"/outputs/{capsule.request_id}/"),
        _names(here.output_files, f"{outputs}/"),
    )
    compared = difference.compare(recorded, here, capsule.omitted, names)
    _say(capsule, compared, notes, here, as_json=call.as_json)
    return compared.verdict.value.exit_code


def _say(capsule: Capsule, compared: Difference, notes: list[str], here: Result, *, as_json: bool) -> None:
    if as_json:
        print(report.document(capsule, compared, notes, here))  # noqa: T201
    else:
        report.show(capsule, compared, notes)


def _recordings(folder: Path, contents: Contents) -> Path:
    """Return the folder with the recorded model calls. It is empty if there are none."""
    recordings = folder / "recordings"
    recordings.mkdir()
    if contents.model_calls is not None:
        contents.model_calls.rename(recordings / bundle.MODEL_CALLS)
    return recordings


@contextmanager
def _code(
    call: Call, capsule: Capsule, contents: Contents, settings: LocalSettings
) -> Iterator[Package | None]:
    """Yield the code to run; None if the job has none.

    The recorded zip is not checked here: if the worker has refused it, the replay refuses it, too.
    """
    job = capsule.job
    with ExitStack() as opened:
        if job is None:
            yield None
        elif call.code is not None:
            yield opened.enter_context(package.packed(call.code, job.runtime, package.limits_of(settings)))
        elif contents.code is None:
            if capsule.result.error_type is not ErrorType.CODE_NOT_FOUND:
                raise InvalidCapsule("the file has no code; give it with --code PATH")
            yield None
        else:
            zip_file = opened.enter_context(contents.code.open("rb"))
            yield Package(
                function_id="replay",
                runtime=job.runtime,
                digest=bundle.digest_of(contents.code),
                zip=zip_file,
                zip_bytes=contents.code.stat().st_size,
                files=0,
                unpacked_bytes=0,
            )


def _notes(
    call: Call, found: Found, missing: list[str], settings: LocalSettings, image_ids: Mapping[Runtime, str]
) -> Iterator[str]:
    """Yield the ways in which this run may differ from the recorded one, as sentences."""
    capsule = found.contents.capsule
    job, image = capsule.job, capsule.image
    if call.code is not None:
        yield f"This run uses the code in {call.code} instead of the recorded code."
    if missing:
        options = " ".join(f"--env {name}=VALUE" for name in missing)
        yield f"Variables without a value: {', '.join(missing)}. Capsules have no values; add {options}."
    if job is not None and image is not None and image_ids[job.runtime] != image.id:
        local = settings.image(job.runtime)
        yield (
            f"The image {local} of this machine is {_short(image_ids[job.runtime])}; the worker had "
            f"{image.reference}, {_short(image.id)}."
        )
    if found.contents.model_calls is None and capsule.result.llm_token_count:
        yield "The model calls of the run were not recorded (AI_RECORD=store), so each call gets an error."
    network = call.network or (job.network if job else "")
    if network == "egress":
        yield "The run could reach the internet, as on the worker; --network ai prevents that."
    if capsule.result.error_type in {ErrorType.CANCELLED, ErrorType.PLATFORM}:
        yield f"The job ended with {capsule.result.error_type}, which is not a failure of its code."


def _short(image_id: str) -> str:
    return image_id[:19]


def _masked(result: Result, env: Mapping[str, str]) -> Result:
    """Return the result with the mask that the capsule has in place of values."""
    values = list(env.values())

    def text(value: str) -> str:
        return capsules.masked(value, values)

    return msgspec.structs.replace(
        result,
        stdout=text(result.stdout),
        stderr=text(result.stderr),
        error_message=None if result.error_message is None else text(result.error_message),
    )


def _names(links: list[str], before: str) -> list[str]:
    """Return the paths of output files below /output, from their links."""
    paths = [unquote(urlsplit(link).path) for link in links]
    return [path.partition(before)[2] or path for path in paths]
