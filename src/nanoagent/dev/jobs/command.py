"""The command `nanoagent jobs`: lists recent jobs."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Final

from nanoagent.dev.jobs import listing, table
from nanoagent.dev.sender import delivery, dev
from nanoagent.dev.sender.stages import Exit, service_failed
from nanoagent.model.errors import PlatformError

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.config import Settings
    from nanoagent.dev.jobs.listing import Job, Query

_NONE: Final = (
    "No such jobs. The list has the last jobs of all workers, for as long as the workers' settings "
    "JOB_INDEX_SIZE and JOB_INDEX_TTL_SECONDS say."
)


def jobs(settings: Settings, query: Query, *, as_json: bool, settings_file: Path = dev.DEFAULT) -> int:
    """List jobs, and return the exit code."""

    async def read() -> tuple[list[Job], int]:
        async with delivery.results(settings) as results:
            return await listing.recent(results, query), await results.time_ms()

    try:
        found, now_ms = asyncio.run(read())
    except PlatformError as exc:
        error = service_failed(exc, settings_file)
        if as_json:
            print(json.dumps({"jobs": [], "error": error}))  # noqa: T201 - a command's output
        else:
            print(f"nanoagent: {error}", file=sys.stderr)  # noqa: T201
        return Exit.SERVICE_FAILED
    if as_json:
        print(json.dumps({"jobs": [job.document() for job in found], "error": None}))  # noqa: T201
    elif found:
        table.show(found, now_ms)
    else:
        print(_NONE, file=sys.stderr)  # noqa: T201
    return Exit.SUCCESS
