"""What a run leaves behind goes to S3: its output files, and logs that are too large for the result."""

from __future__ import annotations

import asyncio
import mimetypes
import tempfile
import unicodedata
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import msgspec

from nanoagent.model import result as results
from nanoagent.model.result import Refusal
from nanoagent.model.text import Text
from nanoagent.supervisor import gap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.config import Settings
    from nanoagent.model.result import Result
    from nanoagent.storage.base import ObjectStore
    from nanoagent.supervisor.output import OutputFile
    from nanoagent.telemetry.metrics import Metrics

_PARALLEL_UPLOADS: Final = 4
_MAX_KEY_BYTES: Final = 1024  # S3: "object key names", UTF-8
# They make a name look like another: Trojan Source, CVE-2021-42574.
_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# No XML can hold them: a bucket with such a key could not be listed. XML 1.0, 2.2
_NO_CHARACTERS: Final = frozenset("\ufffe\uffff")
# Cc: control characters; Cs: the surrogates that stand for bytes that are no UTF-8; Zl, Zp: they end a line.
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_SHOWN_CHARACTERS: Final = 1024
_OURS: Final = ".nanoagent"  # what the worker itself puts beside a run's outputs
_BAD_NAME: Final = Text(
    "its name has control characters or is not valid UTF-8",
    "이름에 제어 문자가 있거나 올바른 UTF-8이 아닙니다",
)
_BAD_PATH: Final = Text("its path has an empty part, . or ..", "경로에 빈 부분이나 . 또는 ..이 있습니다")
_RESERVED: Final = Text("{name} is reserved for the worker", "{name}은(는) 워커가 쓰는 이름입니다")
_LONG_KEY: Final = Text(
    "its key would be longer than {longest} bytes", "객체 키가 {longest}바이트보다 길어집니다"
)
_MORE_REFUSED: Final = Text(
    "{count} more files that were not uploaded do not fit into the result",
    "업로드되지 않은 파일이 {count}개 더 있으나 결과에 들어가지 않습니다",
)
_MORE_LINKS: Final = Text(
    "{count} links do not fit into the result", "링크 {count}개가 결과에 들어가지 않습니다"
)
_DEFAULT_TYPE: Final = "application/octet-stream"
# Python's own table: not the host's /etc/mime.types, which differs from worker to worker.
_TYPES: Final = mimetypes.MimeTypes()
# What a browser shows without running anything of it. All else may be a page with scripts, which would
# run under the bucket's name: those it is told to save.
_SHOWN_TYPES: Final = frozenset({"application/json", "application/pdf", "text/csv", "text/plain"})
_SHOWN_KINDS: Final = frozenset({"audio", "font", "image", "video"})
_SCRIPTED_IMAGES: Final = frozenset({"image/svg+xml"})


def content_type_of(path: str) -> str:
    """The media type that a file's suffix suggests; text is said to be UTF-8.

    The suffix alone: `mimetypes.guess_type` takes a path for a URL, and `data:text/html,x` at its word.
    """
    suffix = PurePosixPath(path).suffix.lower()
    kind = next((known[suffix] for known in reversed(_TYPES.types_map) if suffix in known), _DEFAULT_TYPE)
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def is_shown(content_type: str) -> bool:
    """Whether a browser may show that type where it is asked for, instead of saving it."""
    kind = content_type.partition(";")[0]
    if kind in _SCRIPTED_IMAGES:
        return False
    return kind in _SHOWN_TYPES or kind.partition("/")[0] in _SHOWN_KINDS


def shown_name(path: str) -> str:
    """A path as a result can tell it: bytes that are no UTF-8 become U+FFFD, and it is of bounded length."""
    return path[:_SHOWN_CHARACTERS].encode(errors="surrogateescape").decode(errors="replace")


def name_problem(path: str, key: str) -> Text | None:
    """Why a path that a job chose cannot be a key, or None."""
    if any(
        character in _BIDI
        or character in _NO_CHARACTERS
        or unicodedata.category(character) in _REFUSED_CATEGORIES
        for character in path
    ):
        return _BAD_NAME
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return _BAD_PATH
    if parts[0] == _OURS:
        return _RESERVED.format(name=_OURS)
    if len(key.encode()) > _MAX_KEY_BYTES:
        return _LONG_KEY.format(longest=_MAX_KEY_BYTES)
    return None


def _size_of(path: Path) -> int | None:
    """A file's bytes, None where there is none."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return None


class OutputUploader:
    """Puts files where the contract says, and says where that is.

    Args:
        store: The object store.
        settings: Bucket, region, link style, the largest result.
        metrics: Counts the bytes.
    """

    def __init__(self, store: ObjectStore, settings: Settings, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._uploads = asyncio.Semaphore(_PARALLEL_UPLOADS)

    async def upload(
        self, request_id: str, files: Sequence[OutputFile], fencing_token: int = 0
    ) -> tuple[list[str], list[Refusal]]:
        """Store a run's output files.

        Args:
            request_id: Whose they are.
            files: What to store.
            fencing_token: The token of the claim; see `ObjectStore.put`.

        Returns:
            Their links, in the files' order, and what was not uploaded because of its name.

        Raises:
            Superseded: A later attempt has stored its own.
            StorageError: The store failed; uploading again is harmless.
        """
        # Of a run's hundred files only some wait at a time: another run's single file is not behind them all.
        turns = asyncio.Semaphore(_PARALLEL_UPLOADS)

        async def put(file: OutputFile, key: str) -> str:
            async with turns:
                return await self._put(key, file.staged, content_type_of(file.path), file.size, fencing_token)

        wanted: list[tuple[OutputFile, str]] = []
        refused: list[Refusal] = []
        for file in files:
            key = f"outputs/{request_id}/{file.path}"
            problem = name_problem(file.path, key)
            if problem is None:
                wanted.append((file, key))
            else:
                refused.append(Refusal(shown_name(file.path), problem))
        uploads = [asyncio.create_task(put(file, key)) for file, key in wanted]
        try:
            return list(await asyncio.gather(*uploads)), refused
        finally:
            # Of an attempt that failed nothing may go on, and arrive over what a later one has stored.
            for upload in uploads:
                upload.cancel()
            await asyncio.gather(*uploads, return_exceptions=True)

    async def record(self, request_id: str, exchanges: Path, fencing_token: int = 0) -> None:
        """Store what a run and its models said, if they did, beside its outputs; it counts as none of them.

        Raises:
            Superseded: A later attempt has stored its own.
            StorageError: The store failed.
        """
        size = _size_of(exchanges)
        if size is None:
            return
        key = f"outputs/{request_id}/{_OURS}/ai.jsonl"
        await self._put(key, exchanges, "application/x-ndjson", size, fencing_token)

    async def _put(self, key: str, source: Path, content_type: str, size: int, fencing_token: int) -> str:
        bucket = self._settings.s3_user_data_bucket
        async with self._uploads:
            await self._store.put(
                bucket,
                key,
                source,
                content_type=content_type,
                to_be_saved=not is_shown(content_type),
                fencing_token=fencing_token,
            )
        self._metrics.jobs.outputs_uploaded(size)
        return await self._link(bucket, key)

    async def _link(self, bucket: str, key: str) -> str:
        if self._settings.output_url_style == "presigned":
            return await self._store.presigned_url(
                bucket, key, expires_s=self._settings.output_url_expires_seconds
            )
        return self._store.plain_url(bucket, key)

    async def document(self, result: Result, locale: str, fencing_token: int = 0) -> bytes:
        """The result's JSON; when that is too large, its full logs go to S3 and the rest is shortened.

        Args:
            result: The result.
            locale: Its language.
            fencing_token: The token of the claim; see `ObjectStore.put`.

        Raises:
            Superseded: A later attempt has stored its own.
            StorageError: The store failed.
        """
        document = results.encode(result)
        if len(document) <= self._settings.max_result_bytes:
            return document
        links = {
            f"{stream}_url": await self._put_log(
                result.request_id, stream, getattr(result, stream), fencing_token
            )
            for stream in ("stdout", "stderr")
            if getattr(result, stream)
        }
        linked = msgspec.structs.replace(result, **links)
        return shortened(linked, self._settings.max_result_bytes, locale)

    async def _put_log(self, request_id: str, stream: str, text: str, fencing_token: int) -> str:
        data = text.encode()
        with tempfile.NamedTemporaryFile(prefix="nanoagent-log-") as file:
            await asyncio.to_thread(Path(file.name).write_bytes, data)
            key = f"logs/{request_id}/{stream}.txt"
            return await self._put(
                key, Path(file.name), "text/plain; charset=utf-8", len(data), fencing_token
            )


def shortened(result: Result, max_bytes: int, locale: str) -> bytes:
    """The result's JSON with its logs, then what was not uploaded, then its links, cut until it fits.

    A character takes up to six bytes in JSON, so the cut is found by halving, not by arithmetic.
    """
    keep_chars = max_bytes // 4
    while True:
        shorter = msgspec.structs.replace(
            result, **_cut(result, "stdout", keep_chars, locale), **_cut(result, "stderr", keep_chars, locale)
        )
        if len(document := results.encode(shorter)) <= max_bytes:
            return document
        if keep_chars == 0:
            break
        keep_chars //= 2
    return _with_shorter_lists(shorter, max_bytes, locale)


def _with_shorter_lists(result: Result, max_bytes: int, locale: str) -> bytes:
    """The result's JSON with as much of its lists as fits; the files are there, only not all are listed."""
    links, errors = result.output_files, result.output_errors
    keep_links, keep_errors = len(links), len(errors)
    while True:
        more = [
            Refusal("", text.format(count=count)).in_(locale)
            for count, text in (
                (len(errors) - keep_errors, _MORE_REFUSED),
                (len(links) - keep_links, _MORE_LINKS),
            )
            if count
        ]
        shorter = msgspec.structs.replace(
            result, output_files=links[:keep_links], output_errors=errors[:keep_errors] + more
        )
        document = results.encode(shorter)
        if len(document) <= max_bytes or keep_errors == keep_links == 0:
            return document
        if keep_errors:
            keep_errors //= 2
        else:
            keep_links //= 2


def _cut(result: Result, stream: str, keep_chars: int, locale: str) -> dict[str, str | int]:
    """The stream's two fields with at most `keep_chars` of its head and tail, and one line about the gap."""
    text: str = getattr(result, stream)
    if len(text) <= keep_chars:
        return {}
    already_cut: int = getattr(result, f"{stream}_truncated_bytes")
    parts = gap.split(text) if already_cut else None
    before, behind = parts or (text, text)
    head, tail = before[: keep_chars // 2], behind[max(0, len(behind) - keep_chars // 2) :]
    shown_bytes = len(head.encode()) + len(tail.encode())
    whole_bytes = sum(len(part.encode()) for part in parts) if parts else len(text.encode())
    missing = already_cut + whole_bytes - shown_bytes
    return {stream: gap.joined(head, missing, tail).in_(locale), f"{stream}_truncated_bytes": missing}
