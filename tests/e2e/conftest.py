from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest_asyncio

from support.agents.worker import WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from nanoagent.dev.local_services import EmbeddedStack


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def worker(
    stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WorkerUnderTest]:
    """A worker as its users run it, in a process of its own, on real Docker, Redis and moto."""
    folder = tmp_path_factory.mktemp("worker")
    settings = {"WORKER_CPUS": str(max(2, os.cpu_count() or 2))}
    async with WorkerUnderTest(stack, folder, settings, forks=False) as worker:
        yield worker
