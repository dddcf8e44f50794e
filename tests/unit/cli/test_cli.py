from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from nanoagent import __version__, app, cli
from nanoagent.cli import settings as settings_of
from nanoagent.cli.application import EXIT_INTERRUPTED
from nanoagent.cli.run_command import COMMANDS as MODULES
from nanoagent.config import Settings
from nanoagent.dev.sender.stages import Exit
from nanoagent.doctor import check as checks
from nanoagent.doctor import examination
from nanoagent.doctor.finding import Area, Finding, Severity
from nanoagent.doctor.gather import redis as redis_facts
from nanoagent.model.errors import ConfigError, PlatformError
from nanoagent.wiring import containers
from support.doubles.fakes import make_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGISTERED = [command for module in MODULES for command in module.commands.registered_commands]
COMMANDS = (
    "run",
    "check",
    "doctor",
    "selftest",
    "deploy",
    "invoke",
    "functions",
    "send",
    "result",
    "cancel",
    "demo",
    "dev",
    "version",
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder without a .env, and an environment without settings. Commands add those of files."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    for name in before:
        if name.lower() in Settings.model_fields:
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def nothing_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings whose every service refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for name, value in {
            "SQS_QUEUE_URL": f"http://127.0.0.1:{port}/1/jobs",
            "S3_CODE_BUCKET": "code",
            "S3_USER_DATA_BUCKET": "data",
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(port),
            "REDIS_PASSWORD": "hunter2",
            "WORKER_MEMORY_MB": "2048",
            "METRICS_HOST": "127.0.0.1",
            "METRICS_PORT": "0",
            "DOCKER_HOST": "unix:///nonexistent/docker.sock",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_MAX_ATTEMPTS": "1",
            "COLUMNS": "300",
        }.items():
            monkeypatch.setenv(name, value)
        yield


# --- calls


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main([command, "--help"]) == 0
    assert "Usage: nanoagent" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["bogus"], "bogus"),
        (["check", "--bogus"], "--bogus"),
        (["send"], "code"),
        (["send", ".", "--memory-mb", "much"], "--memory-mb"),
        ([], "Usage: nanoagent"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_what_is_wrong(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err + captured.out


@pytest.mark.parametrize("command", [command.name or command.callback.__name__ for command in REGISTERED])
def test_each_command_has_examples_and_exit_codes_in_its_help(
    command: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"\n    nanoagent {command}" in text.partition("\n  Examples:")[2]
    assert "\n  Exit codes: " in text


def test_no_summary_of_a_command_is_cut(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    assert "...\n" not in capsys.readouterr().out.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("error", "code"),
    [(PlatformError("S3 failed"), 3), (ConfigError(["x: is wrong"]), 2), (RuntimeError("a defect"), 1)],
)
def test_the_exit_code_tells_services_from_settings_and_defects(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr(settings_of, "of_worker", fail)
    assert cli.main(["check"]) == code
    assert str(error).removesuffix(":") in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from nanoagent.cli import main; main(['--help']);"
        "print(sorted({'aiobotocore', 'botocore', 'aiohttp', 'redis', 'structlog', 'pydantic_settings',"
        " 'aiodocker', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_ends_with_the_commands_code():
    done = subprocess.run(
        [sys.executable, "-m", "nanoagent", "bogus"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# --- a reader that has closed the pipe


def in_a_closed_pipe(program: str, *, unbuffered: bool) -> subprocess.CompletedProcess[str]:
    """A program whose standard output nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, *(["-u"] if unbuffered else []), "-c", program],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("unbuffered", [True, False])
@pytest.mark.parametrize("code", [Exit.SUCCESS, Exit.NOT_SUCCESSFUL, Exit.NO_RESULT])
def test_a_closed_pipe_leaves_a_command_its_exit_code(
    code: Exit,
    unbuffered: bool,  # noqa: FBT001 - pytest's way
):
    # The result is longer than the buffer, so that writing fails in `print` as well as at the end.
    done = in_a_closed_pipe(
        "from types import SimpleNamespace\nfrom nanoagent import cli\n"
        "from nanoagent.dev.sender import command\n"
        "from nanoagent.dev.jobs import result\n"
        "from nanoagent.cli import settings\n"
        "settings.of_redis = lambda *_, **__: (SimpleNamespace(), None)\n"
        "found = {'status': 'x', 'stdout': 'x' * 100_000}\n"
        f"result.result = lambda *_, **__: command.Report(as_json=False).end({int(code)}, result=found)\n"
        "raise SystemExit(cli.main(['result', 'r1']))",
        unbuffered=unbuffered,
    )
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("command", ["['--help']", "['version']", "['check']", "['check', '--json']"])
def test_a_closed_pipe_is_no_failure_of_a_command(command: str):
    done = in_a_closed_pipe(
        "from nanoagent import cli, config\nfrom nanoagent.doctor import check\n"
        "async def nothing(settings): return []\n"
        "check.check = nothing\n"
        "fields = {'sqs_queue_url': 'https://q/1', 's3_code_bucket': 'code', 's3_user_data_bucket': 'data'}\n"
        "from nanoagent.cli import settings\n"
        "settings.of_worker = lambda _: config.Settings(worker_memory_mb=2048, **fields)\n"
        f"raise SystemExit(cli.main({command}))",
        unbuffered=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- settings


@pytest.mark.parametrize("command", [["run"], ["check"], ["check", "--json"], ["send", "."]])
def test_missing_settings_are_all_listed_and_end_with_2(
    command: list[str], capsys: pytest.CaptureFixture[str]
):
    assert cli.main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for name in ("SQS_QUEUE_URL", "S3_CODE_BUCKET", "S3_USER_DATA_BUCKET"):
        assert f"\n  {name}: is not set; it should be the " in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("command", ["result", "cancel"])
def test_a_command_that_needs_only_redis_asks_for_no_other_setting(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("SQS_QUEUE_URL", "S3_CODE_BUCKET", "S3_USER_DATA_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
    monkeypatch.setenv("REDIS_PORT", "9")  # no server
    assert cli.main([command, "r1"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Redis at 127.0.0.1:9" in captured.err
    assert "is not set" not in captured.err


def test_settings_are_read_from_the_file_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    seen: list[Settings] = []

    async def check(settings: Settings) -> list[checks.ProbeResult]:
        seen.append(settings)
        return []

    monkeypatch.setattr(checks, "check", check)
    file = tmp_path / "other.env"
    file.write_text(
        "SQS_QUEUE_URL=https://q/1\nS3_CODE_BUCKET=from-file\nS3_USER_DATA_BUCKET=data\n"
        "WORKER_MEMORY_MB=4096\n"
    )
    assert cli.main(["check", "--json", "--env-file", str(file)]) == 0
    assert seen[0].s3_code_bucket == "from-file"
    assert json.loads(capsys.readouterr().out)["settings"]["s3_code_bucket"] == "from-file"


def test_a_file_of_settings_that_is_missing_is_named_beside_the_settings_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["run", "--env-file", str(tmp_path / "typo.env")]) == 2
    said = capsys.readouterr().err
    assert f"the file {tmp_path}/typo.env does not exist" in said
    assert "SQS_QUEUE_URL: is not set" in said
    assert cli.main(["run"]) == 2
    assert "typo.env" not in capsys.readouterr().err


# --- failures


def test_a_failure_of_the_platform_ends_with_3_and_a_sentence(
    nothing_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    async def serve(settings: Settings) -> None:
        raise PlatformError("Docker does not answer")

    monkeypatch.setattr(app, "serve", serve)
    assert cli.main(["run"]) == 3
    assert capsys.readouterr().err == "nanoagent: Docker does not answer\n"


def test_settings_that_show_to_be_wrong_late_end_with_2(
    nothing_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    async def serve(settings: Settings) -> None:
        raise ConfigError(["DOCKER_GO_IMAGE: is not there", "DOCKER_CPP_IMAGE: is not there"])

    monkeypatch.setattr(app, "serve", serve)
    assert cli.main(["run"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  DOCKER_GO_IMAGE: is not there",
        "  DOCKER_CPP_IMAGE: is not there",
    ]


def test_a_worker_that_was_told_to_stop_ends_with_0(nothing_answers: None, monkeypatch: pytest.MonkeyPatch):
    async def serve(settings: Settings) -> None:
        return

    monkeypatch.setattr(app, "serve", serve)
    assert cli.main(["run"]) == 0


def test_ctrl_c_ends_with_130(nothing_answers: None, monkeypatch: pytest.MonkeyPatch):
    async def serve(settings: Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "serve", serve)
    assert cli.main(["run"]) == 130


# --- check


def test_a_check_for_machines_lists_what_does_not_answer(
    nothing_answers: None, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["check", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"settings", "changed", "warnings", "problems", "verdict"}
    assert set(document["settings"]) == set(Settings.model_fields)
    assert document["settings"]["redis_password"] == "***"
    assert {part for part, problem in document["problems"].items() if problem} == {
        *("Docker and images", "SQS queue", "S3 buckets", "Redis")
    }
    assert document["verdict"] == "not ready: Docker and images, SQS queue, S3 buckets, Redis"
    assert "/nonexistent/docker.sock" in document["problems"]["Docker and images"]


def test_a_check_is_not_ready_where_run_would_not_start(
    nothing_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        monkeypatch.setenv("METRICS_PORT", str(used.getsockname()[1]))
        monkeypatch.setenv("CODE_CACHE_DIR", "/proc/cache")
        assert cli.main(["check", "--json"]) == 1
        problems = json.loads(capsys.readouterr().out)["problems"]
        port = used.getsockname()[1]
        assert problems["metrics and health"].startswith(
            f"METRICS_PORT: {port} is already in use on 127.0.0.1"
        )
    assert problems["folders"].startswith("CODE_CACHE_DIR: /proc/cache cannot be made or written below /proc")


async def test_a_check_warns_of_more_memory_than_the_machine_has(monkeypatch: pytest.MonkeyPatch):
    async def info(*_: object) -> dict[str, int]:
        return {"MemTotal": 2048 * 1024 * 1024}

    monkeypatch.setattr(containers, "refuse_unfit_engine", info)
    monkeypatch.setattr(containers, "find_images", info)
    async with AsyncExitStack() as opened:
        probes = await checks._probes(make_settings(worker_memory_mb=4096), opened)
        (images,) = (probe for probe in probes if probe.part == checks.IMAGES)
        found = await checks._answer(images)
    assert found.problem is None
    (warning,) = found.warnings
    assert "WORKER_MEMORY_MB=4096 of the machine's 2048 MiB" in warning
    assert warning.endswith("set WORKER_MEMORY_MB=1536")


def findings(monkeypatch: pytest.MonkeyPatch, *problems: str | None) -> None:
    async def check(settings: Settings) -> list[checks.ProbeResult]:
        return [checks.ProbeResult(f"part {number}", problem) for number, problem in enumerate(problems)]

    monkeypatch.setattr(checks, "check", check)


def test_a_check_that_finds_nothing_ends_with_0(
    nothing_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    findings(monkeypatch, None, None)
    assert cli.main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == {"part 0": None, "part 1": None}


def test_a_check_shows_warnings_and_ends_with_0(
    nothing_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    async def check(settings: Settings) -> list[checks.ProbeResult]:
        return [checks.ProbeResult("model servers", None, ("it does not list [a]",))]

    monkeypatch.setattr(checks, "check", check)
    assert cli.main(["check"]) == 0
    assert "model servers: warning: it does not list [a]" in capsys.readouterr().out
    assert cli.main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == {"model servers": ["it does not list [a]"]}


def test_a_check_for_people_shows_settings_and_problems_as_they_are(
    nothing_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("AI_ENDPOINT", "http://[::1]/[/x]")
    findings(monkeypatch, None, "[Errno 111] [/red] refused")
    assert cli.main(["check"]) == 1
    shown = capsys.readouterr().out
    assert "part 0: ok" in shown
    assert "part 1: [Errno 111] [/red] refused" in shown
    assert "http://[::1]/[/x]" in shown
    assert "hunter2" not in shown
    assert "REDIS_PASSWORD" in shown


@pytest.mark.parametrize(
    ("problems", "code", "verdict"),
    [
        ((None, None), 0, "ready (exit code 0)"),
        ((None, "refused"), 1, "not ready: part 1 (exit code 1)"),
        (("silent", "refused"), 1, "not ready: part 0, part 1 (exit code 1)"),
    ],
)
def test_a_check_ends_with_its_verdict(
    nothing_answers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    problems: tuple[str | None, ...],
    code: int,
    verdict: str,
):
    findings(monkeypatch, *problems)
    assert cli.main(["check"]) == code
    assert capsys.readouterr().out.splitlines()[-1] == verdict


def test_a_check_marks_what_differs_from_its_default(
    nothing_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MAX_ATTEMPTS", "5")  # which is its default
    monkeypatch.setenv("DRAIN_SECONDS", "7")
    findings(monkeypatch, None)
    assert cli.main(["check"]) == 0
    lines = {line.lstrip("* ").split(" ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["DRAIN_SECONDS"] == ["*", "DRAIN_SECONDS", "7", "(default:", "120)"]
    assert lines["REDIS_PASSWORD"] == ["*", "REDIS_PASSWORD", "***", "(default:", "none)"]
    assert lines["MAX_ATTEMPTS"] == ["MAX_ATTEMPTS", "5"]
    assert lines["SQS_WAIT_SECONDS"] == ["SQS_WAIT_SECONDS", "20"]
    assert lines["S3_CODE_BUCKET"] == ["S3_CODE_BUCKET", "code"]  # required: there is no default
    assert cli.main(["check", "--json"]) == 0
    changed = json.loads(capsys.readouterr().out)["changed"]
    assert {"drain_seconds", "redis_password"} <= set(changed)
    assert not {"max_attempts", "s3_code_bucket"} & set(changed)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_check_cuts_neither_names_nor_values(
    nothing_answers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    is_terminal: bool,
):
    url = f"https://sqs.ap-northeast-2.amazonaws.com/123456789012/{'long' * 40}"
    monkeypatch.setenv("SQS_QUEUE_URL", url)
    monkeypatch.setenv("COLUMNS", "60")
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
    problem = f"refused {'by somebody ' * 20}at last"
    findings(monkeypatch, problem)
    assert cli.main(["check"]) == 1
    shown = capsys.readouterr().out
    assert "…" not in shown
    if is_terminal:
        shown = re.sub(r"\s|\x1b\[[0-9;]*m", "", shown)
        assert "long" * 40 in shown.replace("default", "")
        return
    assert any(line.split() == ["SQS_QUEUE_URL", url] for line in shown.splitlines())
    assert f"part 0: {problem}\n" in shown
    names = {line.lstrip("* ").split(" ")[0] for line in shown.splitlines()}
    assert {name.upper() for name in Settings.model_fields} <= names


def test_misspelt_variables_and_a_missing_file_are_warned_of(
    nothing_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setenv("MAX_PROCESS", "3")
    monkeypatch.setenv("REDIS_URL", "redis://me:hunter2@cache")
    findings(monkeypatch, None)
    assert cli.main(["check", "--env-file", str(tmp_path / "typo.env")]) == 0
    shown = capsys.readouterr().out
    assert (
        "settings: warning: MAX_PROCESS is not a setting and has no effect: did you mean MAX_PROCESSES?"
        in shown
    )
    assert "settings: warning: REDIS_URL is not a setting and has no effect: set REDIS_HOST" in shown
    assert f"settings: warning: --env-file: the file {tmp_path}/typo.env does not exist" in shown
    assert "hunter2" not in shown


def test_a_worker_warns_of_settings_without_effect_when_it_starts(
    nothing_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    async def serve(settings: Settings) -> None:
        return

    monkeypatch.setattr(app, "serve", serve)
    monkeypatch.setenv("REDIS_PASS", "hunter2")
    monkeypatch.setenv("LOG_FORMAT", "json")
    assert cli.main(["run"]) == 0
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["level"], line["event"]) == ("warning", "setting without effect")
    assert "did you mean REDIS_PASSWORD?" in line["reason"]


# --- doctor


@pytest.mark.parametrize(
    ("severity", "settings_are_wrong", "code"),
    [(Severity.WARNING, False, 0), (Severity.PROBLEM, False, 1), (Severity.PROBLEM, True, 2)],
)
def test_the_worst_that_the_doctor_finds_is_the_exit_code(
    severity: Severity,
    settings_are_wrong: bool,  # noqa: FBT001 - pytest's way
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    async def examine(env_file: Path) -> examination.Examination:
        found = Finding(Area.DISK, "full", severity, "make room")
        return examination.Examination([found], settings_are_wrong)

    monkeypatch.setattr(examination, "examine", examine)
    assert cli.main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] == (code == 0)
    assert cli.main(["doctor"]) == code
    assert f"{severity}: disk: full\n    remedy: make room\n" in capsys.readouterr().out


def test_a_part_of_the_doctor_that_faints_is_a_finding_beside_the_others(
    nothing_answers: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    async def faint(settings: Settings) -> None:
        raise ZeroDivisionError("hunter2 by nothing")

    monkeypatch.setattr(redis_facts, "collect", faint)
    assert cli.main(["doctor", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    said = {found["area"]: found for found in document["findings"] if "itself failed" in found["found"]}
    assert list(said) == ["Redis"]
    assert said["Redis"]["verdict"] == "unknown"
    assert "ZeroDivisionError: *** by nothing" in said["Redis"]["found"]
    assert {found["area"] for found in document["findings"]} >= {"kernel", "disk", "SQS", "S3", "Docker"}


# --- send


@pytest.mark.parametrize("text", ["{", "hello", "", "NaN", "[Infinity]"])
def test_an_input_that_is_no_json_ends_with_2_and_is_named(
    nothing_answers: None, text: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["send", ".", "--input", text]) == 2
    captured = capsys.readouterr()
    assert "is not JSON" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "command", [["send", "."], ["result", "r1"], ["result", "r1", "--wait", "1"], ["cancel", "r1"]]
)
def test_without_redis_the_address_is_named_and_the_code_is_3(
    nothing_answers: None, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "main.py").write_text("print(1)")
    assert cli.main(command) == 3
    captured = capsys.readouterr()
    assert f"Redis at 127.0.0.1:{os.environ['REDIS_PORT']}: connect: it refuses connections: " in captured.err
    assert "start it, or set REDIS_HOST and REDIS_PORT" in captured.err
    assert ("Nothing was sent." in captured.err) == (command[0] == "send")
    assert "make dev" not in captured.err
    assert "Traceback" not in captured.err
    assert cli.main([*command, "--json"]) == 3
    captured = capsys.readouterr()
    assert "Redis at 127.0.0.1" in json.loads(captured.out)["error"]
    assert captured.err == ""


@pytest.mark.parametrize("command", [["send", "."], ["result", "r1"], ["cancel", "r1"]])
def test_a_misspelt_setting_is_warned_of_by_the_senders_commands(
    nothing_answers: None,
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("REDIS_PROT", "")  # removed again after the test, whoever set it last
    monkeypatch.delenv("REDIS_PROT")
    (tmp_path / "main.py").write_text("print(1)")
    file = tmp_path / "worker.env"
    file.write_text("REDIS_PROT=6380\n")
    assert cli.main([*command, "--env-file", str(file)]) == 3
    said = "Warning: REDIS_PROT is not a setting and has no effect: did you mean REDIS_PORT?"
    assert said in capsys.readouterr().err.splitlines()
    assert cli.main([*command, "--env-file", str(file), "--json"]) == 3
    assert capsys.readouterr().err == ""


def test_a_functions_own_variables_are_not_warned_of(
    nothing_answers: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("GREETING", "hi")
    (tmp_path / ".env").write_text("GREETING=hello\n")
    assert cli.main(["result", "r1"]) == 3
    assert "Warning" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [["send", "."], ["result", "r1"], ["cancel", "r1"]])
def test_with_the_settings_of_make_dev_it_is_said_that_it_may_have_ended(
    nothing_answers: None,
    tmp_path: Path,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "main.py").write_text("print(1)")
    names = ("SQS_QUEUE_URL", "S3_CODE_BUCKET", "S3_USER_DATA_BUCKET", "REDIS_HOST", "REDIS_PORT")
    file = tmp_path / ".nanoagent/dev.env"
    file.parent.mkdir()
    file.write_text("".join(f"{name}={os.environ[name]}\n" for name in names))
    monkeypatch.setenv("SQS_QUEUE_URL", "")
    assert cli.main(command) == 3
    assert f"the settings are from {file}: `make dev` may no longer run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runtime", "rust"], "--runtime rust: is not one of python, nodejs, cpp, go"),
        (["--locale", "fr"], "--locale fr: is not one of ko, en"),
        (["--memory-mb", "31"], "--memory-mb 31"),
        (["--timeout-ms", "0"], "--timeout-ms 0"),
        (["--wait", "nan"], "--wait nan"),
        (["--wait", "-1"], "--wait -1"),
        (["--follow", "--wait", "0"], "--follow: cannot be used with --wait 0"),
        (["--function-id", "a\nb"], "--function-id"),
        (["--function-id", "x" * 257], "--function-id"),
    ],
)
def test_an_option_that_every_worker_would_refuse_ends_with_2(
    nothing_answers: None, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["send", ".", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [["send", "."], ["invoke", "hello"]])
def test_live_output_and_a_json_document_are_not_printed_together(
    nothing_answers: None, command: list[str], capsys: pytest.CaptureFixture[str]
):
    assert cli.main([*command, "--follow", "--json"]) == 2
    captured = capsys.readouterr()
    assert "--follow: cannot be used with --json" in captured.out + captured.err


@pytest.mark.parametrize("request_id", ["", "a b", "..", "x" * 129])
@pytest.mark.parametrize("command", ["result", "cancel"])
def test_a_request_id_that_no_job_can_have_ends_with_2(
    nothing_answers: None, command: str, request_id: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main([command, request_id]) == 2
    assert "is not a request ID" in capsys.readouterr().err


def test_who_has_no_settings_is_told_of_make_dev(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["send", ".", "--env-file", os.devnull]) == 2
    assert "or run `make dev` in another terminal" in capsys.readouterr().err


def test_the_exit_codes_in_the_help_are_those_of_the_commands(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["send", "--help"]) == 0
    shown = capsys.readouterr().out.split("Exit codes:")[1]
    assert re.findall(r"(?<!S)(\d+) ", shown) == [
        *(str(int(code)) for code in Exit),
        str(EXIT_INTERRUPTED),
    ]
