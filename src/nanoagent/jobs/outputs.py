"""Uploads the outputs of a run to S3: its output files, and stdout and stderr if they are too large."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nanoagent.jobs.output_names import (
    RESERVED_FOLDER,
    content_type_of,
    is_safe_to_show,
    name_problem,
    shown_name,
)
from nanoagent.jobs.shortening import shortened
from nanoagent.model import result as results
from nanoagent.model.result import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.config import Settings
    from nanoagent.model.result import Result
    from nanoagent.storage.base import ObjectStore
    from nanoagent.supervisor.output import OutputFile
    from nanoagent.telemetry.metrics import Metrics

_PARALLEL_UPLOADS: Final = 4


class OutputUploader:
    """Uploads output files, and stdout and stderr that are too large for the result. Returns the links.

    Args:
        store: The object store.
        settings: Bucket, link style, and the largest result.
        metrics: Counts the uploaded bytes.
    """

    def __init__(self, store: ObjectStore, settings: Settings, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._uploads = asyncio.Semaphore(_PARALLEL_UPLOADS)

    async def upload(
        self, request_id: str, files: Sequence[OutputFile], fencing_token: int = 0
    ) -> tuple[list[str], list[Refusal]]:
        """Upload the output files of a run.

        Args:
            request_id: The request of the run.
            files: The output files.
            fencing_token: The token of the claim; see `ObjectStore.put`.

        Returns:
            The links, in the order of the files, and the files that were not uploaded because of their names.

        Raises:
            Superseded: A later attempt has stored its outputs.
            StorageError: The store failed; uploading again is harmless.
        """
        # At most four files of a run wait for the shared limit at a time. So a file of another run need not
        # wait for all files of this run.
        own_uploads = asyncio.Semaphore(_PARALLEL_UPLOADS)

        async def put(file: OutputFile, key: str) -> str:
            async with own_uploads:
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
            # A failed upload must stop the others: they could overwrite outputs of a later attempt.
            for upload in uploads:
                upload.cancel()
            await asyncio.gather(*uploads, return_exceptions=True)

    async def upload_ai_record(self, request_id: str, exchanges: Path, fencing_token: int = 0) -> str | None:
        """Upload the exchanges of a run with models, if there were any. The result does not list them.

        Args:
            request_id: The request of the run.
            exchanges: The path of the file with the exchanges. The file does not exist if there were none.
            fencing_token: The token of the claim; see `ObjectStore.put`.

        Returns:
            The object key; None if there were no exchanges.

        Raises:
            Superseded: A later attempt has stored its outputs.
            StorageError: The store failed.
        """
        size = _size_of(exchanges)
        if size is None:
            return None
        key = f"outputs/{request_id}/{RESERVED_FOLDER}/ai.jsonl"
        await self._put(key, exchanges, "application/x-ndjson", size, fencing_token)
        return key

    async def _put(self, key: str, source: Path, content_type: str, size: int, fencing_token: int) -> str:
        bucket = self._settings.s3_user_data_bucket
        async with self._uploads:
            await self._store.put(
                bucket,
                key,
                source,
                content_type=content_type,
                to_be_saved=not is_safe_to_show(content_type),
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
        """Return the JSON of a result. If it is too large, upload stdout and stderr and shorten the result.

        Args:
            result: The result.
            locale: The language of the result.
            fencing_token: The token of the claim; see `ObjectStore.put`.

        Raises:
            Superseded: A later attempt has stored its outputs.
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


def _size_of(path: Path) -> int | None:
    """Return the size of a file in bytes; None if it does not exist."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return None
