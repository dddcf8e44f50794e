"""A stub of S3 that answers GetObject from a folder, in a separate process.

    python -m benchmarks.object_stub FOLDER    prints its port, and serves until its standard input ends

It answers `GET /bucket/key` with `If-None-Match` only. It does not check signatures.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

from aiohttp import web


def read_object(folder: Path, name: str) -> bytes | None:
    """Return the bytes of the object `bucket/key`; None if the folder does not have it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    return path.read_bytes()


def application(folder: Path) -> web.Application:
    """Make the server. The subfolders of the folder are the buckets."""

    async def get_object(request: web.Request) -> web.Response:
        content = read_object(folder, request.match_info["path"])
        if content is None:
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(body=content, headers={"ETag": etag})

    app = web.Application()
    app.router.add_get("/{path:.+}", get_object)
    return app


async def _serve(folder: Path) -> None:
    runner = web.AppRunner(application(folder), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
