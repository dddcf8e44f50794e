"""The smallest memory size, in every language: what waits for a run is not taken out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nanoagent.model.job import MIN_MEMORY_MB

if TYPE_CHECKING:
    from support.agents.worker import WorkerUnderTest

pytestmark = [pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("runtime", ["python", "nodejs", "cpp", "go"])
async def test_the_smallest_job_runs(worker: WorkerUnderTest, runtime: str):
    for say in ("1", "2"):
        result = await worker.run_program(runtime, "quick", memoryMb=MIN_MEMORY_MB, input={"say": say})
        assert (result["status"], result["stdout"]) == ("SUCCESS", f"{say}\n"), result


async def test_large_libraries_are_ready_for_the_smallest_job_too(worker: WorkerUnderTest):
    source = "import pandas\nprint(pandas.DataFrame({'a': [1, 2]}).a.sum())"
    key = await worker.upload({"main.py": source})
    for _ in range(2):
        result = await worker.run(s3Key=key, functionId="pandas-in-little", memoryMb=MIN_MEMORY_MB)
        assert (result["status"], result["stdout"]) == ("SUCCESS", "3\n"), result
    # Imported by the run itself, they would take more than it has.
    assert result["peakMemoryBytes"] < MIN_MEMORY_MB << 20
