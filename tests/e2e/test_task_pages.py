"""The pages of docs/tasks: a reader who types what they show sees what they show."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from nanoagent.dev.stub_model_server import StubModelServer
from support.checks.task_pages import File, steps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.agents.worker import WorkerUnderTest

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(path for path in (ROOT / "docs/tasks").glob("*.md") if path.name != "README.md")
DEADLINE_S: Final = 120


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def environment(worker: WorkerUnderTest) -> AsyncIterator[dict[str, str]]:
    """The environment of a reader: the settings of a worker, a model server, and the commands."""
    kept = {
        name: value for name, value in os.environ.items() if name in {"HOME", "DOCKER_HOST", "PYTHONPATH"}
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    async with StubModelServer() as models:
        reader = {"PATH": path, "LANG": "C.UTF-8", "COLUMNS": "100", "AI_ENDPOINT": models.url}
        yield kept | worker.environment() | reader


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
async def test_a_page_shows_what_happens(page: Path, environment: dict[str, str], tmp_path: Path) -> None:
    commands = 0
    for step in steps(page):
        if isinstance(step, File):
            path = tmp_path / step.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text, encoding="utf-8")
            continue
        commands += 1
        process = await asyncio.create_subprocess_shell(
            step.text,
            cwd=tmp_path,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
        shown = "\n".join(step.shown)
        assert step.expects(output.decode()), f"$ {step.text}\n{output.decode()}\nThe page shows:\n{shown}"
    assert commands > 0
