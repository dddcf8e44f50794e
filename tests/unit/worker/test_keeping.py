"""Which jobs leave a capsule, and that no answer waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from nanoagent.model.errors import PlatformError
from nanoagent.model.result import OUTCOMES, ErrorType, Result
from nanoagent.results.base import Claim
from support.agents.worker_rig import Rig
from support.doubles.fakes import finished, message

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.jobs.attempt import Attempt
    from nanoagent.jobs.capsules import AnsweredJob, Capsules


class NotedCapsules:
    """Records the jobs whose capsules are kept. Nothing is stored."""

    def __init__(self, *, of_all: bool = False) -> None:
        self.of_all = of_all
        self.kept: list[AnsweredJob] = []

    def keep(self, answered: AnsweredJob) -> None:
        self.kept.append(answered)


def make_rig(folder: Path, capsules: NotedCapsules, **changes: Any) -> Rig:
    return Rig(folder, capsules=cast("Capsules", capsules), **changes)


async def run(rig: Rig, body: str) -> None:
    await rig.broker.send(body)
    async with rig.running():
        await rig.until_settled()


@pytest.mark.parametrize(
    "error_type",
    [
        outcome.error_type
        for outcome in OUTCOMES.values()
        if outcome.settle == "deleted" and outcome.error_type is not ErrorType.INVALID_JOB
    ],
)
async def test_each_job_without_success_leaves_a_capsule(
    tmp_path: Path, error_type: ErrorType | None
) -> None:
    capsules = NotedCapsules()
    rig = make_rig(tmp_path, capsules)

    async def script(attempt: Attempt) -> Result:
        attempt.code_digest = "d"
        return finished(attempt, error_type, "what happened" if error_type else None)

    rig.executor.scripts["r1"] = script
    await run(rig, message("r1"))
    (result,) = rig.documents()
    if error_type is None:
        assert (capsules.kept, result.capsule) == ([], None)
        return
    (kept,) = capsules.kept
    assert result.capsule == "capsules/r1.json"
    assert (kept.result.error_type, kept.result.capsule, kept.body) == (
        error_type,
        "capsules/r1.json",
        message("r1"),
    )
    assert kept.attempt is not None
    assert (kept.attempt.code_digest, kept.fencing_token) == ("d", 1)


async def test_each_job_leaves_one_if_the_setting_asks_for_it(tmp_path: Path) -> None:
    capsules = NotedCapsules(of_all=True)
    rig = make_rig(tmp_path, capsules)
    await run(rig, message("r1"))
    assert [kept.result.error_type for kept in capsules.kept] == [None]
    assert rig.documents()[0].capsule == "capsules/r1.json"


async def test_an_invalid_job_leaves_one(tmp_path: Path) -> None:
    capsules = NotedCapsules()
    rig = make_rig(tmp_path, capsules)
    await run(rig, message("r1", memoryMb="much"))
    (kept,) = capsules.kept
    assert (kept.job, kept.attempt, kept.result.error_type) == (None, None, ErrorType.INVALID_JOB)


async def test_a_job_that_is_given_up_leaves_one(tmp_path: Path) -> None:
    capsules = NotedCapsules()
    rig = make_rig(tmp_path, capsules, max_attempts=1)

    async def script(_: Attempt) -> Result:
        raise PlatformError("Docker failed")

    rig.executor.scripts["r1"] = script
    await run(rig, message("r1"))
    (kept,) = capsules.kept
    assert kept.result.error_type is ErrorType.PLATFORM
    assert rig.documents()[0].capsule == "capsules/r1.json"


async def test_a_capsule_is_kept_only_after_the_publication(tmp_path: Path) -> None:
    capsules = NotedCapsules()
    rig = make_rig(tmp_path, capsules)
    published: list[int] = []
    keep = capsules.keep

    def noted(answered: AnsweredJob) -> None:
        published.append(rig.journal.count("publish"))
        keep(answered)

    capsules.keep = noted  # type: ignore[method-assign]
    await run(rig, message("r1", memoryMb="much"))
    assert published == [1]


async def test_a_result_that_is_refused_leaves_none(tmp_path: Path) -> None:
    capsules = NotedCapsules()
    rig = make_rig(tmp_path, capsules)

    async def script(attempt: Attempt) -> Result:
        # As if another worker had taken the claim over, and this worker did not know yet.
        held = rig.result_store._store.claims["r1"].claim
        rig.result_store._store.claims["r1"].claim = Claim("r1", held.token + 1)
        return finished(attempt, ErrorType.USER_ERROR, "what happened")

    rig.executor.scripts["r1"] = script
    await rig.broker.send(message("r1"))
    async with rig.running():
        await rig.journal.until_noted("give back", "r1")
    assert rig.journal.count("refuse") == 1
    assert capsules.kept == []
