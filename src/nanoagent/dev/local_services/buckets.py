"""The S3 buckets of the embedded stack."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from nanoagent.dev.local_services.calls import with_shared_clients

if TYPE_CHECKING:
    from nanoagent.dev.local_services.calls import ServiceCalls

CODE_BUCKET: Final = "nanoagent-code"
DATA_BUCKET: Final = "nanoagent-data"


class LocalBuckets:
    """The buckets of S3. All methods are coroutines and may be called from any event loop.

    Args:
        calls: Runs the calls.
        region: The AWS region of new buckets.
    """

    def __init__(self, calls: ServiceCalls, region: str) -> None:
        self._calls = calls
        self._region = region
        self._numbers = itertools.count(1)

    async def create(self) -> None:
        """Create the buckets of the worker."""
        await self._create(CODE_BUCKET)
        await self._create(DATA_BUCKET)

    async def new(self) -> str:
        """Create an additional bucket; return its name."""
        return await self._create(f"bucket-{next(self._numbers)}")

    @with_shared_clients
    async def put_code(self, key: str, content: bytes) -> None:
        """Store an object in the code bucket."""
        await (await self._calls.clients.s3()).put_object(Bucket=CODE_BUCKET, Key=key, Body=content)

    @with_shared_clients
    async def read(self, bucket: str, key: str) -> bytes:
        """Return the bytes of an object."""
        answer = await (await self._calls.clients.s3()).get_object(Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            return bytes(await body.read())

    @with_shared_clients
    async def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted."""
        found: list[str] = []
        pages = (await self._calls.clients.s3()).get_paginator("list_objects_v2")
        async for page in pages.paginate(Bucket=bucket, Prefix=prefix):
            found += [entry["Key"] for entry in page.get("Contents", [])]
        return sorted(found)

    @with_shared_clients
    async def _create(self, name: str) -> str:
        await (await self._calls.clients.s3()).create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": self._region}
        )
        return name
