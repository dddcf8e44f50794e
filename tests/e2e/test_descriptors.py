"""A worker with few file descriptors serves any number of functions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nanoagent.host.resources import MIN_DESCRIPTORS
from nanoagent.model.job import Runtime
from support.agents.agent_server import ForkedAgent
from support.agents.limited_agent import DESCRIPTORS
from support.agents.worker import TESTS, WorkerUnderTest

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

MOST_CONTAINERS = 3
FUNCTIONS = 8  # more than twice as many as there may be containers
NONE_READY = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in Runtime}


class LimitedWorker(WorkerUnderTest):
    def _new_agent(self) -> ForkedAgent:
        paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
        extra = {"PYTHONPATH": paths, DESCRIPTORS: str(MIN_DESCRIPTORS)}
        return ForkedAgent(self.environment() | extra, self.log, module="support.agents.limited_agent")


async def test_more_functions_than_there_are_descriptors_for_run_one_after_another(
    stack: EmbeddedStack, tmp_path: Path
):
    async with LimitedWorker(stack, tmp_path, NONE_READY) as worker:
        key = await worker.upload({"main.py": "print('ran')"})
        results = [await worker.run(functionId=f"f{number}", s3Key=key) for number in range(FUNCTIONS)]
        evicted = await worker.metric("worker_containers_retired_total", reason="evicted")
        recycled = await worker.metric("worker_container_recycling_seconds_count", runtime="python")
        status, _ = await worker.get("/readyz")
    assert [(result["status"], result["stdout"]) for result in results] == [("SUCCESS", "ran\n")] * FUNCTIONS
    assert evicted + recycled >= FUNCTIONS - MOST_CONTAINERS
    assert status == 200
    assert "file descriptor limit raised" in worker.log.read_text()
