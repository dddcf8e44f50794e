"""The budgets of benchmarks/budgets.toml, and that each counter sees one more of what it counts."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from benchmarks import budgets, container_counts, tracing
from benchmarks.budgets import Budget, Verdict
from benchmarks.counts import LoopCounter
from benchmarks.tracing import CannotCount

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from pathlib import Path

BUDGET = Budget("tasks", "agent", "Each task costs 20 us.", varies=frozenset(), most={"python": 10})


@pytest.mark.parametrize(
    ("measured", "varies", "verdict"),
    [
        (11, False, Verdict.EXCEEDED),
        (10, False, Verdict.KEPT),
        (8, False, Verdict.KEPT),
        (7, False, Verdict.BEATEN),
        (7, True, Verdict.KEPT),
        (11, True, Verdict.EXCEEDED),
    ],
)
def test_a_count_over_its_budget_and_one_far_below_are_refused(
    measured: float,
    varies: bool,  # noqa: FBT001 - a parameter of the test
    verdict: Verdict,
):
    varying = frozenset({Runtime.PYTHON} if varies else {Runtime.GO})
    budget = Budget("tasks", "agent", "", varies=varying, most={"python": 10})
    assert budget.judge(Runtime.PYTHON, measured) is verdict


def test_a_budget_of_nothing_allows_nothing():
    budget = Budget("aws_calls", "agent", "", varies=frozenset(), most={"python": 0})
    assert budget.judge(Runtime.PYTHON, 0) is Verdict.KEPT
    assert budget.judge(Runtime.PYTHON, 1) is Verdict.EXCEEDED


@pytest.mark.parametrize(("measured", "advice"), [(12, "cheaper"), (3, "lower the budget")])
def test_the_message_names_counter_value_budget_table_and_what_to_do(measured: float, advice: str):
    message = BUDGET.message(Runtime.PYTHON, measured)
    for part in ("tasks", f"{measured}", "budget 10", "benchmarks/budgets.toml", advice, "20 us"):
        assert part in message


def test_every_budget_has_a_reason_and_a_number_for_every_runtime():
    table = budgets.read()
    assert len({budget.counter for budget in table}) == len(table)
    for budget in table:
        assert budget.side in {"agent", "container", "queue"}
        assert len(budget.why.split()) >= 5, budget.counter
        assert all(budget.most[runtime] >= 0 for runtime in Runtime), budget.counter


def test_a_table_may_have_one_number_for_all_runtimes(tmp_path: Path):
    (tmp_path / "t.toml").write_text('[queue.calls]\nwhy = "x"\nvaries = true\nmost = 4\n')
    (budget,) = budgets.read(tmp_path / "t.toml")
    assert (budget.side, budget.varies, budget.most[Runtime.GO]) == ("queue", frozenset(Runtime), 4.0)


async def test_the_counters_of_the_loop_see_each_task_hop_turn_and_callback():
    counter = LoopCounter()
    with counter.installed():
        loop = asyncio.get_running_loop()
        await asyncio.create_task(asyncio.sleep(0))
        await asyncio.to_thread(len, "")
        loop.call_soon(len, "")
        await asyncio.sleep(0)
    seen = counter.counts
    assert (seen["tasks"], seen["thread_hops"]) == (1, 1)
    assert seen["loop_turns"] >= 3
    assert seen["loop_handles"] >= 4
    await asyncio.create_task(asyncio.sleep(0))
    await asyncio.to_thread(len, "")
    assert (counter.counts["tasks"], counter.counts["thread_hops"]) == (1, 1)  # it counts no longer


def test_reads_and_writes_of_files_are_counted(tmp_path: Path):
    try:
        before = container_counts.io_of(os.getpid())
    except CannotCount as lack:
        pytest.skip(str(lack))
    (tmp_path / "f").write_bytes(b"12345")
    after = container_counts.io_of(os.getpid())
    assert after["syscw"] >= before["syscw"] + 1
    assert after["wchar"] >= before["wchar"] + 5


async def test_the_system_calls_of_a_process_and_of_its_children_are_seen():
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", "read line; /bin/true; exit 0", stdin=asyncio.subprocess.PIPE
    )
    try:
        async with tracing.traced([process.pid], follow=True) as calls:
            await process.communicate(b"go\n")
    except CannotCount as lack:
        pytest.skip(str(lack))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert any(call.pid == process.pid and call.name == "read" for call in calls)
    assert any(call.pid != process.pid and call.name == "execve" for call in calls)
