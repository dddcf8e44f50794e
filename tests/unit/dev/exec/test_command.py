"""The parts of `nanoagent exec` that need no Docker: exit codes, summary, options, noticing of changes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.config import load_local
from nanoagent.dev.exec import changes, command, summary
from nanoagent.dev.exec.command import Call, Exit, exit_code
from nanoagent.dev.exec.local_worker import LocalStore
from nanoagent.model.errors import ConfigError
from nanoagent.model.result import OutputError, Result, Start, Status, Timings

if TYPE_CHECKING:
    from pathlib import Path


def a_result(**fields: Any) -> Result:
    base: dict[str, Any] = {
        "request_id": "r",
        "function_id": "f",
        "runtime": "python",
        "status": Status.FAILED,
    }
    return Result(**(base | fields))


# --- the exit code


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (a_result(status=Status.SUCCESS, exit_code=0), 0),
        (a_result(exit_code=3, error_type="USER_ERROR"), 3),
        (a_result(exit_code=139, error_type="SIGNAL"), 139),
        (a_result(exit_code=137, error_type="OUT_OF_MEMORY"), 137),
        (a_result(exit_code=0, error_type="OUT_OF_MEMORY"), 1),  # a child process was killed
        (a_result(status=Status.TIMEOUT, exit_code=137, error_type="TIMEOUT"), Exit.TIMEOUT),
        (a_result(exit_code=-1, error_type="BUILD_FAILED"), Exit.NOT_STARTED),
        (a_result(exit_code=-1, error_type="INVALID_CODE"), Exit.NOT_STARTED),
        (a_result(exit_code=-1, error_type="INVALID_JOB"), Exit.INVALID_CALL),
    ],
)
def test_the_exit_code_is_that_of_the_function_or_tells_why_there_is_none(result: Result, code: int) -> None:
    assert exit_code(result) == code


# --- the summary


def shown(result: Result) -> list[str]:
    return [line.plain for line in summary.lines(result, 128)]


def test_success_takes_one_line_and_one_for_each_file() -> None:
    result = a_result(
        status=Status.SUCCESS,
        exit_code=0,
        duration_ms=1234,
        peak_memory_bytes=15 * 1024 * 1024,
        start=Start.COLD,
        timings=Timings(acquire=300, start=12, build=5400),
        output_files=["file:///tmp/x/a%20b.png"],
    )
    assert shown(result) == [
        "SUCCESS  exit code 0, ran 1.2 s, peak 15.0 of 128 MiB, build 5.4 s, cold start 312 ms",
        "output /tmp/x/a b.png",
    ]


def test_a_failure_has_its_reason_and_the_hint() -> None:
    result = a_result(
        exit_code=1,
        error_type="USER_ERROR",
        error_message="ValueError: no",
        hint="Say yes.",
        start=Start.HOT,
        duration_ms=7,
        output_errors=[OutputError("x", "is a link"), OutputError("", "2 more")],
    )
    assert shown(result) == [
        "FAILED (USER_ERROR)  exit code 1, ran 7 ms, hot start 0 ms",
        "error  ValueError: no",
        "hint   Say yes.",
        "output x is a link",
        "output 2 more",
    ]


def test_a_name_of_an_output_file_cannot_control_the_terminal() -> None:
    result = a_result(status=Status.SUCCESS, exit_code=0, output_files=["file:///tmp/%1B%5B2J%0Ax"])
    assert shown(result)[1].isprintable()


# --- options and settings


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"runtime": "ruby"}, "--runtime ruby: is not one of python, nodejs, cpp, go"),
        ({"payload": "{"}, "--input {: is not JSON"),
        ({"env": ("hunter2", "B=1")}, "--env: a value of 7 characters has no ="),
        ({"env": ("NOT_SET_HERE",)}, "--env NOT_SET_HERE: is not set in this environment"),
        ({"secrets": ("DB=ssm:/prod/db",)}, "--secret DB: exec has no access to AWS; give a value"),
        ({"watch": True, "as_json": True}, "--watch: cannot be used with --json"),
        ({"watch": True, "payload": "-"}, "--watch: cannot be used with --json or with --input -"),
    ],
)
def test_a_call_that_cannot_work_names_the_option(
    call: dict[str, Any], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "main.py").touch()
    code = command.run(load_local(None), Call(code=tmp_path, **call))
    assert code == Exit.INVALID_CALL
    assert problem in capsys.readouterr().err


def test_code_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(load_local(None), Call(code=tmp_path / "no")) == Exit.INVALID_CALL
    assert "No such file or directory" in capsys.readouterr().err


def test_settings_need_no_queue_and_no_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQS_QUEUE_URL", "S3_CODE_BUCKET", "S3_USER_DATA_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    assert load_local(None).s3_code_bucket
    monkeypatch.setenv("MAX_OPEN_FILES", "none")
    with pytest.raises(ConfigError, match="MAX_OPEN_FILES"):
        load_local(None)


@pytest.mark.parametrize(
    ("user", "cache", "work"),
    [(0, "/var/cache/nanoagent", "/tmp/tasks"), (1000, "/cache/nanoagent", "/tmp/nanoagent-1000")],
)
def test_only_root_uses_the_folders_of_the_worker(
    user: int, cache: str, work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    for name in ("CODE_CACHE_DIR", "DOCKER_WORK_DIR_ROOT"):
        monkeypatch.delenv(name, raising=False)
    settings = load_local(None)
    assert (str(settings.code_cache_dir), str(settings.docker_work_dir_root)) == (cache, work)


# --- the store


async def test_output_files_keep_their_names_and_other_uploads_are_apart(tmp_path: Path) -> None:
    (tmp_path / "store/data").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    store = LocalStore(tmp_path / "store", "data", tmp_path / "out")
    for key in ("outputs/r1/deep/a.txt", "logs/r1/stdout.txt", "outputs/r2/deep/a.txt"):
        await store.put("data", key, tmp_path / "file", content_type="text/plain")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.txt"))
    assert found == [".nanoagent/stdout.txt", "deep/a.txt"]
    assert store.plain_url("data", "outputs/r1/deep/a.txt") == (tmp_path / "out/deep/a.txt").as_uri()


# --- changes


def edit(folder: Path) -> None:
    (folder / "main.py").write_text("print(2)")


def replace_file(folder: Path) -> None:
    (folder / "new").write_text("print(1)")
    (folder / "new").replace(folder / "main.py")


def add(folder: Path) -> None:
    (folder / "deep/new.py").write_text("")


def remove(folder: Path) -> None:
    (folder / "main.py").unlink()


@pytest.mark.parametrize("change", [edit, replace_file, add, remove])
async def test_a_change_of_files_is_noticed(change: Any, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "main.py").write_text("print(1)")
    seen = changes.state_of([tmp_path])
    assert seen == changes.state_of([tmp_path])
    noticed = asyncio.create_task(changes.wait_for_change([tmp_path], seen))
    await asyncio.sleep(0.1)
    assert not noticed.done()
    change(tmp_path)
    async with asyncio.timeout(20):
        await noticed


@pytest.mark.parametrize("folder", [".git", "__pycache__"])
def test_folders_of_tools_are_not_watched(folder: str, tmp_path: Path) -> None:
    seen = changes.state_of([tmp_path])
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "x").touch()
    assert changes.state_of([tmp_path]) == seen == frozenset()
