"""Every runtime and every way its program can end, through the whole worker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nanoagent.model.job import Runtime
from support.checks.matrix import EXHAUSTIVE

if TYPE_CHECKING:
    from support.agents.worker import WorkerUnderTest

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

RUNTIMES = [str(runtime) for runtime in Runtime]
each_runtime = pytest.mark.parametrize("runtime", RUNTIMES)


@each_runtime
async def test_input_comes_by_environment_file_and_stdin_and_unicode_survives(
    worker: WorkerUnderTest, runtime: str
):
    text = "입력 데이터 🎉 \\ end"
    result = await worker.run_program(runtime, "report", input={"text": text})
    assert (result["status"], result["exitCode"], result["errorType"]) == ("SUCCESS", 0, None)
    greeting, document = result["stdout"].splitlines()
    assert greeting == "stdout: 안녕, мир 🌍"
    assert result["stderr"] == "stderr: 오류 아님\n"
    sent = {"case": "report", "text": text}
    assert [json.loads(json.loads(document)[way]) for way in ("env", "file", "stdin")] == [sent] * 3


@each_runtime
async def test_a_non_zero_exit_code_is_the_users_error_also_with_the_largest_payload(
    worker: WorkerUnderTest, runtime: str
):
    """The programs read the case from PAYLOAD: it is there whole."""
    framing = len(worker.body({"case": "exit", "padding": ""}).encode())
    largest = 131_071 - len("PAYLOAD=")
    result = await worker.run_program(runtime, "exit", input={"padding": "x" * (largest - framing)})
    assert (result["status"], result["exitCode"], result["errorType"]) == ("FAILED", 3, "USER_ERROR")
    assert result["hint"]


@pytest.mark.parametrize(
    ("runtime", "exit_code", "error_type", "says"),
    [
        ("python", 1, "USER_ERROR", "KeyError: '없는 키'"),
        ("nodejs", 1, "USER_ERROR", "Error: 없는 키"),
        ("cpp", 134, "SIGNAL", "없는 키"),
        ("go", 2, "USER_ERROR", "panic: 없는 키"),
    ],
)
async def test_an_uncaught_exception_ends_as_it_does_in_a_shell(
    worker: WorkerUnderTest, runtime: str, exit_code: int, error_type: str, says: str
):
    result = await worker.run_program(runtime, "raise")
    assert (result["exitCode"], result["errorType"]) == (exit_code, error_type)
    assert says in result["stderr"]
    assert result["errorMessage"].endswith(says)


async def test_a_python_traceback_is_the_plain_interpreters(worker: WorkerUnderTest):
    result = await worker.run_program("python", "raise")
    lines = result["stderr"].splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith('  File "/work/main.py", line ')


@each_runtime
async def test_a_program_killed_by_its_own_signal_says_which(worker: WorkerUnderTest, runtime: str):
    result = await worker.run_program(runtime, "signal")
    assert (result["status"], result["exitCode"], result["errorType"]) == ("FAILED", 137, "SIGNAL")
    assert "SIGKILL" in result["errorMessage"]


@each_runtime
async def test_a_program_that_runs_too_long_is_ended(worker: WorkerUnderTest, runtime: str):
    result = await worker.run_program(runtime, "hang", timeoutMs=700)
    assert (result["status"], result["errorType"]) == ("TIMEOUT", "TIMEOUT")
    assert result["durationMs"] >= 700
    assert "700 ms" in result["errorMessage"]


@each_runtime
async def test_a_program_that_ignores_sigterm_and_leaves_a_daemon_is_ended(
    worker: WorkerUnderTest, runtime: str
):
    result = await worker.run_program(runtime, "stubborn", timeoutMs=2000)
    assert (result["status"], result["exitCode"]) == ("TIMEOUT", 137)
    assert result["stdout"] == "still here\n"


@each_runtime
@pytest.mark.parametrize("case", ["large_file", "large_file_child"])
async def test_a_file_over_its_limit_is_a_disk_limit_also_in_a_child(
    worker: WorkerUnderTest, runtime: str, case: str
):
    result = await worker.run_program(runtime, case)
    assert (result["status"], result["errorType"]) == ("FAILED", "DISK_LIMIT")
    assert result["errorMessage"] == f"a file reached the limit of {512 << 20} bytes (MAX_FILE_MB=512)"


@pytest.mark.parametrize("runs", [5, pytest.param(25, marks=EXHAUSTIVE)])
async def test_a_large_file_is_found_that_a_run_writes_at_once(worker: WorkerUnderTest, runs: int):
    results = [await worker.run_program("cpp", "large_file_child") for _ in range(runs)]
    assert {result["errorType"] for result in results} == {"DISK_LIMIT"}


@each_runtime
@pytest.mark.parametrize("case", ["oom", "oom_child"])
async def test_running_out_of_memory_is_distinguished_from_a_kill(
    worker: WorkerUnderTest, runtime: str, case: str
):
    result = await worker.run_program(runtime, case)
    assert (result["status"], result["errorType"]) == ("FAILED", "OUT_OF_MEMORY")
    assert result["peakMemoryBytes"] > 100 * 1024 * 1024
    assert result["tuning"]["recommendedMemoryMb"] > 128


@each_runtime
async def test_the_start_and_the_end_of_endless_output_are_kept(worker: WorkerUnderTest, runtime: str):
    result = await worker.run_program(runtime, "flood", memoryMb=256)
    whole = 20_000 * 1000 + len("the end\n")
    kept = 256 * 1024
    assert result["status"] == "SUCCESS"
    assert result["stdoutTruncatedBytes"] == whole - kept
    assert f"\n… {whole - kept} bytes cut …\n" in result["stdout"]
    assert result["stdout"].startswith("x" * 999)
    assert result["stdout"].endswith("x\nthe end\n")


@each_runtime
@pytest.mark.parametrize("case", ["files", "files_then_fail"])
async def test_output_files_are_uploaded_with_their_folders_also_of_failed_jobs(
    worker: WorkerUnderTest, runtime: str, case: str
):
    result = await worker.run_program(runtime, case)
    assert result["status"] == ("SUCCESS" if case == "files" else "FAILED")
    base = f"{worker.stack.endpoint_url}/{worker.stack.data_bucket}/outputs/{result['requestId']}/"
    assert [link.removeprefix(base) for link in result["outputFiles"]] == [
        "a.txt",
        "folder/b.json",
        "folder/%ED%95%98%EC%9C%84/%EA%B2%B0%EA%B3%BC%201.csv",
    ]
    contents = [await worker.output(link) for link in result["outputFiles"]]
    assert contents == [b"one", b"{}", b"x,y\n"]
    assert [error["path"] for error in result["outputErrors"]] == ["link", "pipe"]
    assert all("only regular files" in error["reason"] for error in result["outputErrors"])


@pytest.mark.parametrize(
    ("runtime", "entry", "source", "says"),
    [
        ("cpp", "main.cpp", "int main() { return nonsense; }\n", "nonsense"),
        ("go", "main.go", "package main\n\nfunc main() { nonsense() }\n", "undefined: nonsense"),
    ],
)
async def test_a_build_error_comes_back_in_the_compilers_words(
    worker: WorkerUnderTest, runtime: str, entry: str, source: str, says: str
):
    key = await worker.upload({entry: source})
    result = await worker.run(runtime=runtime, s3Key=key)
    assert (result["status"], result["exitCode"], result["errorType"]) == ("FAILED", -1, "BUILD_FAILED")
    assert says in result["stderr"]
    assert entry in result["stderr"]
    assert result["peakMemoryBytes"] is None


async def test_go_code_that_is_no_program_is_told_so(worker: WorkerUnderTest):
    key = await worker.upload({"main.go": "package library\n\nfunc main() {}\n"})
    result = await worker.run(runtime="go", s3Key=key)
    assert result["errorType"] == "BUILD_FAILED"
    assert "package library is not a program" in result["stderr"]


@pytest.mark.parametrize(
    ("runtime", "entry"),
    [("python", "main.py"), ("nodejs", "index.js"), ("cpp", "main.cpp"), ("go", "main.go")],
)
async def test_code_without_its_entry_file_is_refused_by_name(
    worker: WorkerUnderTest, runtime: str, entry: str
):
    key = await worker.upload({"other.txt": "nothing"})
    result = await worker.run(runtime=runtime, s3Key=key)
    assert (result["status"], result["errorType"]) == ("FAILED", "INVALID_CODE")
    assert entry in result["errorMessage"]


async def test_code_that_is_not_there_is_named(worker: WorkerUnderTest):
    result = await worker.run(s3Key="no/such.zip")
    assert (result["status"], result["errorType"], result["exitCode"]) == ("FAILED", "CODE_NOT_FOUND", -1)
    assert "no/such.zip" in result["errorMessage"]


async def test_code_that_is_no_zip_is_refused(worker: WorkerUnderTest):
    result = await worker.run(s3Key=await worker.upload(b"this is no zip"))
    assert result["errorType"] == "INVALID_CODE"


async def test_a_wrong_field_is_answered_with_every_problem(worker: WorkerUnderTest):
    result = await worker.run(s3Key="k", memoryMb="lots", runtime="perl")
    assert (result["status"], result["errorType"]) == ("FAILED", "INVALID_JOB")
    assert 'memoryMb is "lots"; expected an integer' in result["errorMessage"]
    assert 'runtime is "perl"; expected one of python, nodejs, cpp, go' in result["errorMessage"]


async def test_code_inside_a_single_folder_runs(worker: WorkerUnderTest):
    key = await worker.upload({"pkg/main.py": "import helper", "pkg/helper.py": "print('from the folder')"})
    result = await worker.run(s3Key=key)
    assert (result["status"], result["stdout"]) == ("SUCCESS", "from the folder\n")


async def test_a_large_input_comes_by_file_and_stdin_only(worker: WorkerUnderTest):
    source = (
        "import os, sys\n"
        "text = open(os.environ['PAYLOAD_FILE']).read()\n"
        "print('PAYLOAD' in os.environ, len(text), sys.stdin.read() == text)\n"
    )
    key = await worker.upload({"main.py": source})
    result = await worker.run(s3Key=key, input="x" * 200_000)
    assert result["stdout"] == "False 200002 True\n"


async def test_a_program_sees_the_contracts_environment_and_nothing_else(worker: WorkerUnderTest):
    source = "import json, os\nprint(json.dumps(dict(os.environ)))\n"
    key = await worker.upload({"main.py": source})
    result = await worker.run(s3Key=key, functionId="함수", modelId="mistral")
    seen = json.loads(result["stdout"])
    assert set(seen) - {"LC_CTYPE"} == {
        *("PAYLOAD", "PAYLOAD_FILE", "JOB_ID", "FUNCTION_ID", "OUTPUT_DIR", "MEMORY_LIMIT_MB"),
        *("DEADLINE_MS", "LLM_MODEL", "AI_ENDPOINT", "OLLAMA_HOST", "OPENAI_BASE_URL"),
        *("OPENAI_API_KEY", "OPENAI_API_BASE", "OLLAMA_BASE_URL", "OLLAMA_API_BASE"),
        *("HOME", "USER", "LOGNAME", "PATH", "LANG"),
    }
    assert (seen["FUNCTION_ID"], seen["LLM_MODEL"]) == ("함수", "mistral")
    assert seen["JOB_ID"] == result["requestId"]


async def test_the_ai_client_is_importable_and_a_file_of_its_name_wins(worker: WorkerUnderTest):
    plain = await worker.upload({"main.py": "import ai_client; print(ai_client.__file__)"})
    shadowed = await worker.upload({"main.py": "import ai_client", "ai_client.py": "print('mine')"})
    first = await worker.run(s3Key=plain)
    second = await worker.run(s3Key=shadowed)
    assert first["status"] == "SUCCESS"
    assert not first["stdout"].startswith("/work")
    assert second["stdout"] == "mine\n"


@pytest.mark.parametrize(
    ("source", "error_type"),
    [
        ("open('/tmp/big', 'wb').write(bytes(600 * 1024 * 1024))", "DISK_LIMIT"),
        ("import os\nfor i in range(20_000): open(f'/tmp/{i}', 'w').close()", "DISK_LIMIT"),
        ("import os, time\nfor _ in range(300): os.fork() or time.sleep(60)", "PROCESS_LIMIT"),
    ],
    ids=["bytes", "files", "processes"],
)
async def test_each_limit_has_its_own_outcome(worker: WorkerUnderTest, source: str, error_type: str):
    key = await worker.upload({"main.py": source})
    result = await worker.run(s3Key=key, memoryMb=1024)
    assert (result["status"], result["errorType"]) == ("FAILED", error_type)
