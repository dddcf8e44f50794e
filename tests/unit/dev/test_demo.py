from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest
from rich.console import Console

from nanoagent.dev import demo, develop, environment, sources
from nanoagent.dev.agent_process import AgentProcess
from nanoagent.dev.demo import _print_verdict, _Sent, _table
from nanoagent.dev.local_services import EmbeddedStack
from nanoagent.dev.local_services.service import Service
from nanoagent.dev.sender import dev
from nanoagent.languages.recipes import RECIPES
from nanoagent.model import result as results
from nanoagent.model.errors import PlatformError
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Result, Start, Status, Timings, Tuning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def document(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "function_id": "demo-python-llm",
        "runtime": "python",
        "status": Status.SUCCESS,
        "exit_code": 0,
        "start": Start.HOT,
        "timings": Timings(run=12.4, total=34.6),
        "peak_memory_bytes": 10 * 1024 * 1024,
        "tuning": Tuning(64, 0.3, 1, 50.0),
        "optimization_tip": "a tip with [brackets]",
        "output_files": ["https://s3.x.amazonaws.com/data/outputs/r1/chart%20[1].svg"],
    }
    return dict(json.loads(results.encode(Result(**(fields | changes)))))


def shown(*jobs: _Sent) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(_table(list(jobs), "first round"))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_job_without_a_result_is_shown_as_running():
    text = shown(_Sent("r1", Runtime.GO))
    assert "go" in text
    assert "running …" in text


def test_a_result_is_shown_with_its_figures_files_and_tip():
    text = shown(_Sent("r1", "python-llm", document(llm_token_count=4321)))
    for part in ("SUCCESS", "hot", "12", "35", "10.0 / 64", "4321", "chart%20[1].svg"):
        assert part in text
    assert "python-llm: a tip with [brackets]" in text


def test_a_job_that_never_started_is_shown_with_dashes():
    text = shown(
        _Sent(
            "r1",
            Runtime.CPP,
            document(
                status=Status.FAILED,
                exit_code=-1,
                error_type=ErrorType.BUILD_FAILED,
                start=None,
                peak_memory_bytes=None,
                tuning=None,
                optimization_tip=None,
                output_files=[],
            ),
        )
    )
    assert "FAILED" in text
    assert "- / -" in text
    assert text.count(" - ") >= 4  # start, peak, tip, tokens


def verdict(*documents: dict[str, Any]) -> tuple[int, str]:
    file = io.StringIO()
    code = _print_verdict(list(documents), Console(file=file, width=200), Path("/state"))
    return code, file.getvalue()


def test_a_round_that_went_well_ends_with_0():
    code, text = verdict(document(), document())
    assert code == 0
    assert "All 2 jobs succeeded." in text


def test_a_failure_ends_with_1_and_says_why_whatever_the_words_look_like():
    failed = document(
        status=Status.FAILED,
        exit_code=1,
        error_type=ErrorType.USER_ERROR,
        error_message="KeyError: [/red] [bold]x",
        hint="Read [/stderr].",
        stderr="[/x] said",
    )
    code, text = verdict(document(), failed)
    assert code == 1
    assert "python-llm failed: KeyError: [/red] [bold]x" in text
    assert "Read [/stderr]." in text
    assert "1 of 2 jobs failed" in text


@pytest.mark.parametrize("example", demo._EXAMPLES)
def test_every_example_of_the_demo_is_there(example: str):
    folder = sources.folder("examples") / example
    assert (folder / RECIPES[_Sent("r1", example).runtime].entry).is_file()
    json.loads((folder / "input.json").read_text())


def test_the_demo_runs_every_example_and_thereby_every_runtime():
    assert set(demo._EXAMPLES) == {folder.name for folder in sources.folder("examples").iterdir()}
    assert {_Sent("r1", example).runtime for example in demo._EXAMPLES} == set(Runtime)


async def test_without_a_model_server_a_stand_in_answers_and_that_is_said(monkeypatch):
    for name in environment._MODEL_SERVER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    console = Console(file=io.StringIO(), width=160)
    async with AsyncExitStack() as opened, aiohttp.ClientSession() as client:
        settings = await environment.model_server_settings(opened, console)
        async with client.get(f"{settings['AI_ENDPOINT']}/api/version") as response:
            assert response.status == 200
    assert isinstance(console.file, io.StringIO)
    assert "AI_ENDPOINT is not set: a stub model server" in console.file.getvalue()


@pytest.mark.parametrize("name", environment._MODEL_SERVER_SETTINGS)
async def test_with_a_model_server_no_stand_in_is_started(monkeypatch, name: str):
    monkeypatch.setenv(name, "http://models.example")
    async with AsyncExitStack() as opened:
        assert await environment.model_server_settings(opened, Console(file=io.StringIO())) == {}


@pytest.mark.parametrize(
    ("variables", "locale", "said"),
    [
        ({"LANG": "ko_KR.UTF-8"}, "ko", "errors are in Korean (LANG=ko_KR.UTF-8); LOCALE=en changes that."),
        ({"LANG": "C.UTF-8"}, "en", "errors are in English (LANG=C.UTF-8); LOCALE=ko changes that."),
        ({"LANG": "C.UTF-8", "LOCALE": "ko"}, "ko", ""),
    ],
)
def test_demo_and_dev_take_the_shells_language_and_say_so(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], locale: str, said: str
):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "LOCALE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    console = Console(file=io.StringIO(), width=160)
    assert environment.result_locale(console) == locale
    assert isinstance(console.file, io.StringIO)
    assert said in console.file.getvalue()


def test_send_finds_the_worker_of_make_dev_for_as_long_as_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQS_QUEUE_URL", "")
    state = tmp_path / ".nanoagent"
    state.mkdir()
    with develop.settings_file(state, {"SQS_QUEUE_URL": "http://127.0.0.1:1/q"}) as written:
        assert dev.settings_file(dev.DEFAULT) == written
        assert os.environ["SQS_QUEUE_URL"] == "http://127.0.0.1:1/q"
    monkeypatch.setenv("SQS_QUEUE_URL", "")
    assert not written.exists()


def test_the_settings_of_a_worker_that_was_started_since_stay(tmp_path: Path):
    with develop.settings_file(tmp_path, {"REDIS_PORT": "1"}):
        (tmp_path / dev.SETTINGS).write_text("REDIS_PORT=2\n")
    assert (tmp_path / dev.SETTINGS).read_text() == "REDIS_PORT=2\n"


@pytest.mark.parametrize("is_default", [True, False])
def test_the_command_that_dev_proposes_finds_its_worker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_default: bool,  # noqa: FBT001 - pytest's way
):
    monkeypatch.chdir(tmp_path)
    state = tmp_path / (".nanoagent" if is_default else "my state")
    settings = state / dev.SETTINGS
    running = environment.Environment(
        EmbeddedStack(state / "stack"), AgentProcess({}, state / "agent.log"), {}
    )
    console = Console(file=io.StringIO(), width=80)

    develop.print_instructions(console, running, state, settings)

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    (line,) = [line for line in text.splitlines() if "nanoagent send" in line]
    words = shlex.split(line)
    named = Path(words[words.index("--env-file") + 1]) if "--env-file" in words else None
    assert named == (None if is_default else settings)
    assert ("the state folder is not the default one" in text) is not is_default


def test_a_state_folder_in_use_is_refused_with_the_process_that_uses_it(tmp_path: Path):
    holder = "import sys; from pathlib import Path; from nanoagent.dev import environment\n"
    holder += "with environment.lock_folder(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(PlatformError) as refused, environment.lock_folder(tmp_path):
            pass
        other.kill()
        other.wait()
    assert f"(pid {other.pid}) uses {tmp_path}: stop it, or name another folder with --state" in str(
        refused.value
    )
    with environment.lock_folder(tmp_path):  # a killed process leaves no lock
        pass


async def test_a_second_dev_touches_no_file_of_the_first(tmp_path: Path):
    (tmp_path / "agent.log").write_text("the first one's")
    with environment.lock_folder(tmp_path), pytest.raises(PlatformError, match="another `nanoagent dev`"):
        async with environment.running(tmp_path, Console(file=io.StringIO()), {}):
            pass
    assert (tmp_path / "agent.log").read_text() == "the first one's"
    assert not (tmp_path / "stack").exists()


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PlatformError, match="file/state: cannot be used"),
        environment.lock_folder(tmp_path / "file/state"),
    ):
        pass


class _Agent:
    """An agent that runs until it is stopped."""

    port = 8000
    log = "the agent's log"

    async def ended(self) -> None:
        await asyncio.Event().wait()

    def log_tail(self) -> str:
        return self.log


@pytest.mark.parametrize(
    ("name", "said"), [("redis", "Redis"), ("moto", "the server of SQS, S3 and CloudWatch")]
)
async def test_dev_ends_with_the_name_of_the_service_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
):
    program = "import time; print('last words', flush=True); time.sleep(600)"
    stack = EmbeddedStack(tmp_path / "stack")
    (tmp_path / "stack").mkdir()
    other = Service.start("other", [sys.executable, "-c", program], tmp_path)
    service = Service.start(name, [sys.executable, "-c", program], tmp_path)
    stack.services = [other, service]

    @asynccontextmanager
    async def running(*_: Any) -> AsyncIterator[environment.Environment]:
        yield environment.Environment(stack, cast("AgentProcess", _Agent()), {})

    monkeypatch.setattr(environment, "running", running)
    monkeypatch.setattr(environment, "END_SIGNALS", ())
    service.wait_until(lambda: True if "last words" in service.output() else None)
    monkeypatch.setattr(develop, "print_instructions", lambda *_: service.process.kill())
    try:
        with pytest.raises(PlatformError) as failed:
            async with asyncio.timeout(60):
                await develop.run(tmp_path)
    finally:
        other.stop()
        service.stop()
    assert str(failed.value) == f"{said} ({tmp_path}/{name}.log) ended\nlast words"
