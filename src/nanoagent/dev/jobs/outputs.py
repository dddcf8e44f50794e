"""The command `nanoagent outputs`: lists the output files of a job, and downloads them."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from nanoagent.aws import clients as aws
from nanoagent.aws import failures as aws_failures
from nanoagent.dev.jobs import download
from nanoagent.dev.sender import delivery, dev, message
from nanoagent.dev.sender.package import shown_size
from nanoagent.dev.sender.stages import Exit, service_failed
from nanoagent.model.errors import InvalidCall, PlatformError, StorageError, one_line
from nanoagent.storage.base import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nanoagent.config import Settings

_CHUNK_BYTES: Final = 256 * 1024
_PARALLEL: Final = 8
_LEAST_BYTES_PER_S: Final = 16 * 1024  # a slower download fails


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """An output file of a job.

    Attributes:
        name: The path below /output. The program has chosen it.
        link: The link in the result.
        bucket: The bucket; empty if the link does not tell it.
        key: The object's key.
        size: The size, bytes; None if it is unknown.
        problem: Why the file could not be examined or downloaded; None without a problem.
        path: The file that was written; None if it was not downloaded.
    """

    name: str
    link: str
    bucket: str
    key: str
    size: int | None = None
    problem: str | None = None
    path: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the file as `nanoagent outputs --json` prints it."""
        return {
            "name": self.name,
            "size": self.size,
            "link": self.link,
            "path": self.path,
            "error": self.problem,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of `nanoagent outputs`.

    Attributes:
        request_id: The request.
        folder: The folder for the files; None to list them.
        force: Whether to replace existing files.
        as_json: Whether the output is JSON.
        settings_file: The file with the settings.
    """

    request_id: str
    folder: Path | None = None
    force: bool = False
    as_json: bool = False
    settings_file: Path = field(default=dev.DEFAULT)


def outputs(settings: Settings, call: Call) -> int:
    """List or download the output files of a job, and return the exit code."""
    try:
        message.check_request_id(call.request_id)
        document = asyncio.run(_result(settings, call.request_id))
        if document is None:
            reasons = "the job has not ended, was not sent, or its result is older than RESULT_TTL_SECONDS"
            return _fail(call, Exit.NO_RESULT, f"no result of {call.request_id}: {reasons}")
        files = asyncio.run(of_result(settings, call, document))
    except InvalidCall as exc:
        return _fail(call, Exit.INVALID_CALL, str(exc))
    except download.NotWritten as exc:
        return _fail(call, Exit.INVALID_CALL, f"--download: {exc}")
    except PlatformError as exc:
        return _fail(call, Exit.SERVICE_FAILED, service_failed(exc, call.settings_file))
    return _report(call, files, document.get("outputErrors") or [])


async def of_result(settings: Settings, call: Call, document: dict[str, Any]) -> list[Output]:
    """Return the output files of a result, with their sizes. If the call names a folder, download them.

    Raises:
        NotWritten: The folder cannot be used.
    """
    return await _with_s3(settings, call, files_of(document, call.request_id, settings.s3_user_data_bucket))


def files_of(document: dict[str, Any], request_id: str, bucket: str) -> list[Output]:
    """Return the output files that a result names.

    Args:
        document: The result.
        request_id: The request of the result.
        bucket: The bucket of output files; empty to take it from the links.
    """
    prefix = f"/outputs/{request_id}/"
    files = []
    for link in document.get("outputFiles") or []:
        parts = urlsplit(str(link))
        before, mark, rest = parts.path.partition(prefix)
        if not mark:
            files.append(Output(name=one_line(str(link)), link=str(link), bucket="", key="", problem=_NO_KEY))
            continue
        name = unquote(rest)
        # Links in path style have the bucket before the key. In others it is the first part of the host.
        named = before.rpartition("/")[2] or (parts.hostname or "").partition(".")[0]
        key = f"{prefix[1:]}{name}"
        files.append(Output(name=name, link=str(link), bucket=bucket or unquote(named), key=key))
    return files


_NO_KEY: Final = "its link is not one of this request"


async def _result(settings: Settings, request_id: str) -> dict[str, Any] | None:
    async with delivery.results(settings) as results:
        return await results.stored(request_id)


# --- S3


async def _with_s3(settings: Settings, call: Call, files: Sequence[Output]) -> list[Output]:
    """Return the files with their sizes; with `--download`, download them."""
    if not any(file.key for file in files):
        return list(files)
    async with aws.AwsClients(settings.aws_region) as clients:
        s3 = await clients.s3()
        gate = asyncio.Semaphore(_PARALLEL)

        async def sized(file: Output) -> Output:
            async with gate:
                return await _sized(s3, file)

        found = list(await asyncio.gather(*map(sized, files)))
        if call.folder is None:
            return found
        with closing(download.Folder(call.folder, replace=call.force)) as folder:
            return await _download_all(s3, found, folder, call)


async def _sized(s3: Any, file: Output) -> Output:
    if file.problem is not None:
        return file
    operation = f"examine {shown(file.bucket, file.key)}"
    try:
        async with aws_failures.deadline(aws.CALL_TIMEOUT_S, StorageError, operation):
            answer = await s3.head_object(Bucket=file.bucket, Key=file.key)
    except StorageError as exc:
        return replace(file, problem=str(exc))
    size = answer.get("ContentLength")
    return replace(file, size=size, problem="S3 does not tell its size" if size is None else None)


async def _download_all(
    s3: Any, files: Sequence[Output], folder: download.Folder, call: Call
) -> list[Output]:
    """Download files one after the other, with progress on a terminal."""
    total = sum(file.size or 0 for file in files)
    if total > folder.free_bytes:
        need = f"the files have {shown_size(total)}, and {shown_size(folder.free_bytes)} are free"
        raise download.NotWritten(f"{call.folder}: {need}")
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, disable=call.as_json or not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        done = []
        for file in files:
            progress.update(task, description=one_line(file.name)[-30:].replace("[", "\\["))
            done.append(await _download(s3, file, folder, call, lambda size: progress.advance(task, size)))
        return done


async def _download(
    s3: Any, file: Output, folder: download.Folder, call: Call, advance: Callable[[int], object]
) -> Output:
    """Download one file, and return it with its path or its problem."""
    if file.size is None:
        return file
    seconds = aws.CALL_TIMEOUT_S + file.size / _LEAST_BYTES_PER_S
    try:
        with folder.new_file(file.name) as target:
            operation = f"download {shown(file.bucket, file.key)}"
            async with aws_failures.deadline(seconds, StorageError, operation):
                answer = await s3.get_object(Bucket=file.bucket, Key=file.key)
                async with answer["Body"] as body:
                    size = 0
                    while chunk := await body.read(_CHUNK_BYTES):
                        size += len(chunk)
                        if size > file.size:
                            break
                        target.write(chunk)
                        advance(len(chunk))
            if size != file.size:
                raise download.NotWritten(f"its size is not {file.size} bytes, as S3 said before")  # noqa: TRY301
    except (StorageError, download.NotWritten) as exc:
        return replace(file, problem=str(exc))
    return replace(file, path=str(call.folder / file.name if call.folder else file.name))


# --- the report


def _fail(call: Call, code: Exit, error: str) -> int:
    if call.as_json:
        print(json.dumps({"requestId": call.request_id, "files": [], "notUploaded": [], "error": error}))  # noqa: T201
    else:
        print(f"nanoagent: {error}", file=sys.stderr)  # noqa: T201
    return code


def _report(call: Call, files: Sequence[Output], not_uploaded: Sequence[dict[str, Any]]) -> int:
    """Print the files, and return the exit code."""
    failed = [file for file in files if file.problem is not None]
    code = Exit.SUCCESS
    if failed and call.folder is not None:
        code = Exit.NOT_SUCCESSFUL
    if call.as_json:
        document = {
            "requestId": call.request_id,
            "files": [file.document() for file in files],
            "notUploaded": list(not_uploaded),
            "error": f"{len(failed)} of {len(files)} files: see their errors" if failed else None,
        }
        print(json.dumps(document))  # noqa: T201
        return code
    sizes = ["-" if file.size is None else shown_size(file.size) for file in files]
    names = [one_line(file.name) for file in files]
    widths = max(map(len, sizes), default=0), max(map(len, names), default=0)
    for file, size, name in zip(files, sizes, names, strict=True):
        where = file.path if call.folder is not None else file.link
        if where is not None:
            print(f"{size:>{widths[0]}}  {name:<{widths[1]}}  {one_line(where)}")  # noqa: T201
    for file in failed:
        print(f"nanoagent: {one_line(file.name)}: {one_line(file.problem or '')}", file=sys.stderr)  # noqa: T201
    for refused in not_uploaded:
        path, reason = one_line(str(refused.get("path"))), one_line(str(refused.get("reason")))
        print(f"Not uploaded: {path}: {reason}", file=sys.stderr)  # noqa: T201
    if not files:
        print(f"{call.request_id} has no output files.", file=sys.stderr)  # noqa: T201
    elif call.folder is not None and not failed:
        print(f"Downloaded {len(files)} file{'s' * (len(files) != 1)}.", file=sys.stderr)  # noqa: T201
    return code
