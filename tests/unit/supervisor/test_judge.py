from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nanoagent.common.units import MIB
from nanoagent.container.cgroup import MemoryUse
from nanoagent.container.judgment import judge
from nanoagent.container.spec import Limits
from nanoagent.model.job import Runtime
from nanoagent.model.result import OUTCOMES, Blame, ErrorType
from nanoagent.supervisor.exit_status import exit_code_of, signal_of
from nanoagent.supervisor.output import Captured, Collected
from nanoagent.supervisor.wire import ExitFlag, ExitReport, RunRequest

UNHURRIED = hypothesis_settings(deadline=None)  # the machine is shared

REQUEST = RunRequest(
    arguments=("/usr/bin/python3", "main.py"),
    environment={"MEMORY_LIMIT_MB": "128"},
    payload=b"{}",
    timeout_ms=1500,
    grace_ms=1000,
    capture_bytes=1024,
    file_size_bytes=3 * 1024 * 1024,
    open_files=64,
    output_max_files=1,
    output_max_file_bytes=1,
    output_max_total_bytes=1,
    prepare_next=True,
)
LIMITS = Limits(processes=99, tmp_bytes=11 * MIB, work_bytes=22 * MIB, output_bytes=33 * MIB, inodes=444)
NO_FLAGS = ExitFlag(0)
CALM = MemoryUse(peak_bytes=1, oom_kills=0, refused_processes=0)
OOM = MemoryUse(peak_bytes=1, oom_kills=1, refused_processes=0)
FORKS = MemoryUse(peak_bytes=1, oom_kills=0, refused_processes=7)
EVERYTHING = MemoryUse(peak_bytes=1, oom_kills=1, refused_processes=7)
ALL_FLAGS = (
    ExitFlag.KILLED | ExitFlag.TIMED_OUT | ExitFlag.DISK_FULL | ExitFlag.FILE_LIMIT | ExitFlag.NOT_STARTED
)


def exited(code: int) -> int:
    return code << 8


def report(wait_status: int = 0, flags: ExitFlag = NO_FLAGS) -> ExitReport:
    return ExitReport(wait_status, flags, *[0] * 9)


def verdict(
    wait_status: int = 0,
    flags: ExitFlag = NO_FLAGS,
    use: MemoryUse | None = CALM,
    stderr: str = "",
    language: Runtime | None = None,
) -> tuple[ErrorType | None, str | None]:
    error_type, message = judge(
        REQUEST, report(wait_status, flags), use, Collected(stderr=Captured(stderr)), language, limits=LIMITS
    )
    return error_type, None if message is None else str(message)


def test_exit_code_0_and_no_limit_is_success():
    assert verdict() == (None, None)


def test_success_needs_no_counters():
    assert verdict(use=None) == (None, None)


def test_an_exit_code_is_a_user_error_told_by_the_last_line_of_stderr():
    said = "Traceback (most recent call last):\n  ...\nValueError: no such thing\n\n"
    assert verdict(exited(1), stderr=said) == (ErrorType.USER_ERROR, "ValueError: no such thing")


def test_a_silent_exit_is_told_by_its_code():
    assert verdict(exited(3), stderr="\n \n") == (ErrorType.USER_ERROR, "the program exited with 3")


def test_a_last_line_is_shown_short():
    _, message = verdict(exited(1), stderr="x" * 10_000)
    assert message == "x" * 299 + "…"


def test_an_error_is_told_as_the_programs_language_prints_it():
    said = (
        "/work/index.js:1\nthrow 1\n^\n\nTypeError: no such thing\n    at f (x.js:1:1)\n\nNode.js v20.19.2\n"
    )
    assert verdict(exited(1), stderr=said, language=Runtime.NODEJS) == (
        ErrorType.USER_ERROR,
        "TypeError: no such thing",
    )
    assert verdict(exited(1), stderr=said, language=None)[1] == "Node.js v20.19.2"


def test_a_signal_is_told_by_the_error_that_the_program_printed_for_it():
    said = "terminate called after throwing an instance of 'std::runtime_error'\n  what():  no such thing\n"
    assert verdict(signal.SIGABRT, stderr=said, language=Runtime.CPP) == (
        ErrorType.SIGNAL,
        "terminate called after throwing an instance of 'std::runtime_error': no such thing",
    )
    assert (
        verdict(signal.SIGSEGV, stderr=said, language=Runtime.CPP)[1] == "the program was killed by SIGSEGV"
    )


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT, signal.SIGTERM])
def test_a_signal_of_its_own_making_is_named(number: signal.Signals):
    assert verdict(int(number)) == (ErrorType.SIGNAL, f"the program was killed by {number.name}")


def test_a_timeout_is_told_with_its_limit():
    assert verdict(signal.SIGKILL, ExitFlag.TIMED_OUT) == (
        ErrorType.TIMEOUT,
        "the program was still running after 1500 ms",
    )


def test_a_program_that_ends_well_after_its_timeout_has_still_timed_out():
    kind, _ = verdict(exited(0), ExitFlag.TIMED_OUT)
    assert kind is ErrorType.TIMEOUT


@pytest.mark.parametrize("wait_status", [exited(0), exited(1), signal.SIGKILL])
def test_the_kernels_kill_is_out_of_memory_whatever_the_program_made_of_it(wait_status: int):
    kind, message = verdict(wait_status, use=OOM)
    assert kind is ErrorType.OUT_OF_MEMORY
    assert message == "the kernel killed a process of the run because its memory was used up (memoryMb=128)"


def test_a_kill_without_the_kernels_counter_is_the_programs_own():
    assert verdict(signal.SIGKILL, use=None)[0] is ErrorType.SIGNAL


def test_too_many_sockets_are_memory_of_the_kernels_used_up():
    kind, message = verdict(signal.SIGKILL, ExitFlag.SOCKETS)
    assert kind is ErrorType.OUT_OF_MEMORY
    assert message is not None
    assert "sockets" in message


def test_a_full_disk_is_a_disk_limit_even_with_exit_code_0():
    kind, message = verdict(exited(0), ExitFlag.DISK_FULL)
    assert kind is ErrorType.DISK_LIMIT
    assert message is not None
    for limit in ("TMP_MAX_MB=11", "OUTPUT_DIR_MAX_MB=33", "WORK_MAX_MB=22", "MAX_INODES=444"):
        assert limit in message


def test_a_file_that_grew_too_large_is_told_with_the_limit():
    kind, message = verdict(signal.SIGXFSZ, ExitFlag.FILE_LIMIT)
    assert (kind, message) == (
        ErrorType.DISK_LIMIT,
        "a file reached the limit of 3145728 bytes (MAX_FILE_MB=3)",
    )


@pytest.mark.parametrize(
    ("language", "said"),
    [
        (Runtime.PYTHON, "OSError: [Errno 27] File too large: 'a' -> '/tmp/x'"),
        (
            Runtime.PYTHON,
            "subprocess.CalledProcessError: Command '['dd', 'of=/tmp/f']' died with <Signals.SIGXFSZ: 25>.",
        ),
        (Runtime.NODEJS, "Error: EFBIG: file too large, ftruncate"),
        (Runtime.GO, "panic: truncate /tmp/f: file too large"),
        (Runtime.GO, "2026/11/30 08:32:24 saved: write /tmp/a b: file too large"),
        (Runtime.GO, "2026/11/30 08:32:25 signal: file size limit exceeded"),
        (Runtime.CPP, "what(): filesystem error: cannot resize file: File too large [/tmp/f]"),
    ],
)
def test_the_kernels_refusal_of_a_larger_file_is_a_disk_limit_in_each_language(language: Runtime, said: str):
    assert verdict(exited(1), stderr=said, language=language) == (
        ErrorType.DISK_LIMIT,
        "a file reached the limit of 3145728 bytes (MAX_FILE_MB=3)",
    )
    assert verdict(exited(0), stderr=said, language=language) == (None, None)


@pytest.mark.parametrize("language", Runtime)
@pytest.mark.parametrize(
    "said",
    [
        "ValueError: File too large",
        "error: file too large (limit 5 MB)",
        "File size limit exceeded",
        "upload a.zip: file too large",
        "OSError: [Errno 28] No space left on device",
        "Error: ENOSPC: no space left on device, write",
    ],
)
def test_a_programs_own_words_about_large_files_are_its_own_error(language: Runtime, said: str):
    assert verdict(exited(1), stderr=said, language=language) == (ErrorType.USER_ERROR, said)


def test_refused_forks_are_a_process_limit():
    kind, message = verdict(exited(1), use=FORKS, stderr="fork: retry")
    assert kind is ErrorType.PROCESS_LIMIT
    assert message == "the run wanted more than 99 processes and threads (MAX_PROCESSES=99); refused: 7"


def test_a_run_that_was_called_off_is_cancelled_whatever_else_it_did():
    assert verdict(signal.SIGKILL, ALL_FLAGS, EVERYTHING)[0] is ErrorType.CANCELLED


def test_of_several_limits_the_first_of_the_list_counts():
    flags = ALL_FLAGS & ~ExitFlag.KILLED
    order = []
    for dropped, use in (
        (NO_FLAGS, EVERYTHING),
        (ExitFlag.TIMED_OUT, EVERYTHING),
        (NO_FLAGS, FORKS),
        (ExitFlag.DISK_FULL, FORKS),
        (ExitFlag.FILE_LIMIT, FORKS),
        (NO_FLAGS, CALM),
    ):
        flags &= ~dropped
        order.append(verdict(signal.SIGKILL, flags, use)[0])
    assert order == [
        ErrorType.TIMEOUT,
        ErrorType.OUT_OF_MEMORY,
        ErrorType.DISK_LIMIT,
        ErrorType.DISK_LIMIT,
        ErrorType.PROCESS_LIMIT,
        ErrorType.SIGNAL,
    ]


@UNHURRIED
@given(
    wait_status=st.integers(0, 2**32 - 1).filter(lambda status: status & 0x7F != 0x7F),
    flags=st.integers(0, 127).map(ExitFlag),
    use=st.none() | st.builds(MemoryUse, st.integers(0), st.integers(0, 3), st.integers(0, 3)),
    stderr=st.text(max_size=30),
    language=st.none() | st.sampled_from(Runtime),
)
def test_any_report_of_a_supervisor_is_a_user_ending(
    wait_status: int, flags: ExitFlag, use: MemoryUse | None, stderr: str, language: Runtime | None
):
    kind, message = verdict(wait_status, flags, use, stderr, language)
    assert (kind is None) == (message is None)
    assert OUTCOMES[kind].blame is not Blame.PLATFORM
    if kind is None:
        assert exit_code_of(wait_status) == 0
    if message is not None:
        assert 1 <= len(message) <= 300


@pytest.mark.parametrize("code", [0, 1, 2, 127, 255])
def test_a_programs_own_exit_code_is_kept(code: int):
    assert exit_code_of(exited(code)) == code
    assert signal_of(exited(code)) is None


@pytest.mark.parametrize("number", [1, 6, 9, 11, 15, 34, 64])
def test_after_a_signal_the_exit_code_is_128_and_its_number(number: int):
    assert exit_code_of(number) == 128 + number
    assert exit_code_of(number | 0x80) == 128 + number  # with a core dump
    assert signal_of(number) is not None
