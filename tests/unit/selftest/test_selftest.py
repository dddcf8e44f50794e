"""The self-test recognises failed isolation checks, and blocks the runtimes that fail them."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.model.errors import ConfigError, ContainerError, PlatformError
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType, Isolation
from nanoagent.selftest import checks, report, schedule, suite
from nanoagent.selftest.checks import IsolationCheck
from nanoagent.selftest.schedule import SelfTestSchedule
from nanoagent.selftest.suite import CheckResult, RuntimeResult, SelfTestResult
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from support.doubles.fakes import DEADLINE_S, make_settings

if TYPE_CHECKING:
    from nanoagent.selftest.suite import Suite

STATUS_LINES = ("Uid:\t1000\t1000", "CapInh:\t0", "CapPrm:\t0", "CapEff:\t0", "CapAmb:\t0", "NoNewPrivs:\t1")
STATUS = "done " + "\x1e".join((*STATUS_LINES, "Seccomp:\t2"))
LIMITS = (
    "done Max file size             536870912            536870912            bytes\x1e"
    "Max core file size        1                    1                    bytes\x1e"
    "Max open files            1024                 1024                 files"
)
OPERATIONS = {
    operation.line: operation for operation in checks.operations(make_settings(), 4000, {"PATH", "HOME"})
}
RIGHT = {
    "connect 127.0.0.1 4000": f"error {errno.ECONNREFUSED}",
    "connect 192.0.2.1 80": f"error {errno.ENETUNREACH}",
    "names /sys/class/net": "done lo",
    "write /etc/passwd": f"error {errno.EROFS}",
    "read /proc/1/environ": f"error {errno.EACCES}",
    "read /proc/self/status": STATUS,
    "environment": "done PATH\x1eHOME",
    "names /proc": "done 1\x1e2\x1eself\x1estat",
    "names /tmp": "done",
    "space /tmp": f"done {512 * 1024 * 1024} 16384",
    "read /proc/self/limits": LIMITS,
}
WRONG = [
    ("connect 127.0.0.1 4000", "done"),
    ("connect 192.0.2.1 80", "done"),
    ("connect 192.0.2.1 80", f"error {errno.ETIMEDOUT}"),  # there was a way, and nobody at its end
    ("names /sys/class/net", "done lo\x1eeth0"),
    ("write /etc/passwd", "done"),
    ("read /proc/1/environ", "done SECRET=1"),
    ("read /proc/self/status", STATUS.replace("CapEff:\t0", "CapEff:\t200")),
    ("read /proc/self/status", STATUS.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0")),
    ("read /proc/self/status", STATUS.replace("Seccomp:\t2", "Seccomp:\t0")),
    ("read /proc/self/status", STATUS.replace("Uid:\t1000\t1000", "Uid:\t1000\t0")),
    ("read /proc/self/status", "error 13"),
    ("read /proc/self/status", "done "),
    ("environment", "done PATH\x1eHOME\x1eAWS_SECRET_ACCESS_KEY"),
    ("names /proc", "done " + "\x1e".join(map(str, range(20)))),
    ("names /proc", "error 13"),
    ("names /tmp", f"done {checks.MARK}"),
    ("space /tmp", f"done {1 << 40} 16384"),
    ("space /tmp", f"done {512 * 1024 * 1024} 9999999"),
    ("read /proc/self/limits", LIMITS.replace("536870912  ", "unlimited  ")),
    ("read /proc/self/limits", LIMITS.replace("Max open files", "Max closed files")),
]


@pytest.mark.parametrize("line", RIGHT)
def test_a_refused_operation_is_no_problem(line: str) -> None:
    assert OPERATIONS[line].problem(RIGHT[line]) is None


@pytest.mark.parametrize(("line", "answer"), WRONG)
def test_a_failure_of_isolation_is_recognised(line: str, answer: str) -> None:
    assert OPERATIONS[line].problem(answer)


def test_every_system_call_has_to_be_refused() -> None:
    calls = [operation for operation in OPERATIONS.values() if operation.line.startswith("call ")]
    assert len(calls) > 20
    for call in calls:
        assert call.problem("done"), call.line
        assert call.problem(f"error {errno.EFAULT}"), call.line  # the kernel has looked at its arguments
        assert call.problem(f"error {errno.EPERM}") is None, call.line


def test_every_isolation_check_has_an_operation() -> None:
    tried = {operation.check for operation in OPERATIONS.values()}
    tried |= {test.check for test in checks.limit_tests(make_settings())}
    assert tried == set(IsolationCheck)


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 272), ("aarch64", 97)])
def test_system_calls_have_the_machines_own_numbers(
    machine: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    operations = checks.operations(make_settings(), 1, ())
    assert f"call {number} {0x10000000} 0 0 0 0 0" in [operation.line for operation in operations]


def test_a_machine_without_known_numbers_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ConfigError, match=r"SELFTEST_INTERVAL_SECONDS: .*riscv64; it should be 0"):
        checks.check_machine()


def test_a_process_beside_process_1_and_the_program_is_a_problem() -> None:
    operations = checks.operations(make_settings(), 1, ())
    (judge,) = (each.problem for each in operations if each.check is IsolationCheck.PROCESSES)
    assert judge("done 1\x1e7\x1eself\x1ememinfo") is None
    assert judge("done 1\x1e7\x1e9\x1eself") == "shows 3 processes"


def test_few_processes_have_to_end_a_fork_bomb_by_their_number_alone() -> None:
    def ends(processes: int) -> frozenset[ErrorType]:
        found = checks.limit_tests(make_settings(max_processes=processes))
        return next(test.expected for test in found if test.check is IsolationCheck.PROCESS_LIMIT)

    assert ends(128) == ends(256) == {ErrorType.PROCESS_LIMIT}
    assert ends(10_000) == {ErrorType.PROCESS_LIMIT, ErrorType.OUT_OF_MEMORY}


def test_the_program_has_memory_for_as_many_processes_as_are_allowed() -> None:
    found = [checks.memory_mb(make_settings(max_processes=processes)) for processes in (64, 256, 10_000)]
    assert found == [128, 256, 512]


# --- the schedule


class ScriptedSuite:
    """Finds what it is told to find."""

    def __init__(self) -> None:
        self.found: dict[Runtime, str | Exception | None] = dict.fromkeys(Runtime)
        self.tested: list[Runtime] = []

    async def run(self, runtime: Runtime) -> list[CheckResult]:
        self.tested.append(runtime)
        found = self.found[runtime]
        if isinstance(found, Exception):
            raise found
        return [
            CheckResult(IsolationCheck.NETWORK, runtime, 3, found),
            CheckResult(IsolationCheck.TRACES, runtime, 1, None),
        ]


class Watch:
    """A schedule with a scripted suite.

    Args:
        interval_s: The time between two tests, seconds.
    """

    def __init__(self, interval_s: float = 3600) -> None:
        self.suite = ScriptedSuite()
        self.metrics = Metrics()
        self.health = Health()
        self.is_idle = True
        self.looks = 0
        self.schedule = SelfTestSchedule(
            self.suite,  # type: ignore[arg-type]
            self._look,
            self.metrics,
            self.health,
            interval_s,
        )

    def _look(self) -> bool:
        self.looks += 1
        return self.is_idle

    def check(self, check: IsolationCheck, runtime: Runtime) -> float | None:
        labels = {"guard": str(check), "runtime": str(runtime)}
        return self.metrics.registry.get_sample_value("worker_guard_ok", labels)

    @property
    def part(self) -> dict[str, Any]:
        found: dict[str, Any] = self.health.document()["parts"]["guards"]
        return found

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.001)


def test_nothing_is_taken_before_the_first_test() -> None:
    watch = Watch()
    assert all(watch.schedule.blocked(runtime) for runtime in Runtime)


async def test_runtimes_that_pass_take_jobs() -> None:
    watch = Watch()
    await watch.schedule.start()
    await watch.schedule.close()
    assert not any(watch.schedule.blocked(runtime) for runtime in Runtime)
    assert watch.part == {"ok": True, "reason": ""}
    assert watch.check(IsolationCheck.NETWORK, Runtime.GO) == 1


async def test_a_failed_check_blocks_only_its_runtime_and_says_why() -> None:
    watch = Watch()
    watch.suite.found[Runtime.CPP] = "connect 192.0.2.1 80: was not refused"
    await watch.schedule.start()
    await watch.schedule.close()
    assert [runtime for runtime in Runtime if watch.schedule.blocked(runtime)] == [Runtime.CPP]
    assert watch.check(IsolationCheck.NETWORK, Runtime.CPP) == 0
    assert watch.check(IsolationCheck.TRACES, Runtime.CPP) == 1
    assert watch.check(IsolationCheck.NETWORK, Runtime.PYTHON) == 1
    assert not watch.part["ok"]
    assert watch.part["reason"] == "cpp takes no jobs: network: connect 192.0.2.1 80: was not refused"


@pytest.mark.parametrize("failure", [ContainerError("no such image"), ZeroDivisionError("a bug")])
async def test_a_runtime_that_could_not_be_tested_is_blocked(failure: Exception) -> None:
    watch = Watch()
    watch.suite.found[Runtime.GO] = failure
    await watch.schedule.start()
    await watch.schedule.close()
    assert watch.schedule.blocked(Runtime.GO) == f"the self-test could not run: {failure}"
    assert watch.check(IsolationCheck.NETWORK, Runtime.GO) is None
    assert not watch.part["ok"]


async def test_a_later_test_that_cannot_be_made_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_RETRY_S", 0.001)
    watch = Watch(0.001)
    watch.suite.found[Runtime.NODEJS] = "open"
    await watch.schedule.start()
    watch.suite.found = dict.fromkeys(Runtime, PlatformError("Docker is unavailable"))
    seen = len(watch.suite.tested)
    await watch.until(lambda: len(watch.suite.tested) > seen + 8)
    await watch.schedule.close()
    assert [runtime for runtime in Runtime if watch.schedule.blocked(runtime)] == [Runtime.NODEJS]


async def test_a_check_that_fails_later_blocks_and_one_that_passes_again_unblocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "_RETRY_S", 0.001)
    watch = Watch(0.001)
    await watch.schedule.start()
    watch.suite.found[Runtime.PYTHON] = "open"
    await watch.until(lambda: watch.schedule.blocked(Runtime.PYTHON))
    await watch.until(lambda: not watch.part["ok"])
    watch.suite.found[Runtime.PYTHON] = None
    await watch.until(lambda: not watch.schedule.blocked(Runtime.PYTHON))
    await watch.until(lambda: watch.part["ok"])
    await watch.schedule.close()


async def test_a_busy_worker_is_not_disturbed_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_IDLE_POLL_S", 0.001)
    watch = Watch(0.001)
    watch.is_idle = False
    await watch.schedule.start()
    await watch.until(lambda: watch.looks > 8)
    assert len(watch.suite.tested) == len(Runtime)
    await watch.schedule.close()
    monkeypatch.setattr(schedule, "_MAX_WAIT_FOR_IDLE_S", 0.001)
    await watch.schedule.start()
    await watch.until(lambda: len(watch.suite.tested) > 3 * len(Runtime))
    await watch.schedule.close()


# --- the report

PASSED = CheckResult(IsolationCheck.NETWORK, Runtime.PYTHON, 6, None)
FAILED = CheckResult(IsolationCheck.NETWORK, Runtime.GO, 6, "connect 192.0.2.1 80: was not refused")
TESTED = SelfTestResult(
    Isolation.SANDBOX,
    [
        RuntimeResult(Runtime.PYTHON, [PASSED], None, 1.5),
        RuntimeResult(Runtime.GO, [FAILED], None, 2.25),
        RuntimeResult(Runtime.CPP, [], "no such image: [x]", 0.125),
    ],
)


def test_the_table_shows_every_result_and_names_the_problems(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    report.show(TESTED)
    said = capsys.readouterr().out
    assert "network 12 ok FAILED not tested" in " ".join(said.split())
    assert "go, network: connect 192.0.2.1 80: was not refused" in said
    assert "cpp was not tested: no such image: [x]" in said
    assert "isolation between runs: sandbox" in said


def test_the_document_has_every_result() -> None:
    found = report.document(TESTED)
    assert (found["ok"], found["isolation"]) == (False, "sandbox")
    assert found["runtimes"]["python"] == {
        "ok": True,
        "reason": None,
        "seconds": 1.5,
        "guards": {"network": {"ok": True, "tried": 6, "problem": None}},
    }
    assert found["runtimes"]["cpp"]["reason"] == "no such image: [x]"
    assert not found["runtimes"]["cpp"]["ok"]


async def test_all_runtimes_are_tested_and_a_failure_to_run_is_reported() -> None:
    scripted = ScriptedSuite()
    scripted.found[Runtime.CPP] = ContainerError("no such image")
    found: Suite = scripted  # type: ignore[assignment]
    results = await suite.run_all(found)
    assert [(each.runtime, each.ok) for each in results] == [
        (runtime, runtime is not Runtime.CPP) for runtime in Runtime
    ]
