"""Programs that fail as authors' programs do: do their hints name the right cause?

The programs are in `support.catalogue`. They run in real containers, as jobs do.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from nanoagent.config import load_local
from nanoagent.container.execution import RunControl
from nanoagent.dev.exec import local_worker
from nanoagent.dev.sender.package import Package
from nanoagent.model import result as results
from nanoagent.model.job import Runtime
from nanoagent.model.result import OUTCOMES
from support.catalogue import check, cpp, go, nodejs, noise, python
from support.sandboxes.containers import image_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from nanoagent.config import LocalSettings
    from nanoagent.dev.exec.local_worker import LocalWorker
    from nanoagent.model.result import Result
    from support.catalogue.program import Program

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

PROGRAMS: Final = (
    *python.PROGRAMS,
    *nodejs.PROGRAMS,
    *cpp.PROGRAMS,
    *go.PROGRAMS,
    *check.PROGRAMS,
    *noise.PROGRAMS,
)


def chosen_for_make_test() -> list[Program]:
    """Return the programs of `check` and `noise`, and one program for each cause that they do not have."""
    chosen = [*check.PROGRAMS, *noise.PROGRAMS]
    causes = {program.cause for program in chosen}
    for program in PROGRAMS:
        if program.cause not in causes:
            chosen.append(program)
            causes.add(program.cause)
    return chosen


SHORT: Final = chosen_for_make_test()
REST: Final = [program for program in PROGRAMS if program not in SHORT]
AT_A_TIME: Final = 2
DEADLINE_S: Final = 300
RIGHT: Final = 0.9
WRONG: Final = 0.02


@dataclass(frozen=True, slots=True)
class Judged:
    """A program that has run.

    Attributes:
        program: The program.
        result: The result of its run.
    """

    program: Program
    result: Result

    @property
    def is_right(self) -> bool:
        """Whether the hint names the right cause; for a program without a cause, whether it names none."""
        return self.result.cause is self.program.cause

    @property
    def is_wrong(self) -> bool:
        """Whether the hint names a wrong cause."""
        return self.result.cause is not None and not self.is_right

    def __str__(self) -> str:
        result, program = self.result, self.program
        return (
            f"{program.runtime:7} {program.name:32} expected {program.cause!s:24} got {result.cause!s:24}"
            f" {result.error_type} {result.error_message} | {result.hint}"
        )


def zipped(program: Program) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in program.files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o100755 if name in program.executable else 0o100644) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


async def run(worker: LocalWorker, program: Program) -> Judged:
    content = zipped(program)
    digest = hashlib.sha256(content).hexdigest()
    runtime = Runtime(program.runtime)
    code = Package(f"f-{digest[:12]}", runtime, digest, io.BytesIO(content), len(content), 0, 0)
    job = {
        "requestId": f"r-{digest[:12]}",
        "functionId": code.function_id,
        "runtime": runtime,
        "s3Key": code.key,
        "memoryMb": program.memory_mb,
        "timeoutMs": program.timeout_ms,
        "network": program.network,
        "input": program.payload,
        "locale": "en",
    }
    answered = await worker.answer(code, json.dumps(job), RunControl())
    return Judged(program, results.decode(answered.document))


async def run_all(worker: LocalWorker, programs: Iterable[Program]) -> list[Judged]:
    places = asyncio.Semaphore(AT_A_TIME)

    async def run_one(program: Program) -> Judged:
        async with places:
            return await run(worker, program)

    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.gather(*map(run_one, programs))


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["short", pytest.param("rest", marks=pytest.mark.exhaustive)],
)
async def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Judged]:
    """A part of the programs, after they have run."""
    folder = tmp_path_factory.mktemp("explanations")
    async with local_worker.opened(settings_of(folder), folder / "outputs") as worker:
        return await run_all(worker, SHORT if request.param == "short" else REST)


def settings_of(folder: Path) -> LocalSettings:
    """Return settings with which the functions share containers, so that a program takes little time."""
    changes = {
        **{f"docker_{runtime}_image": image_of(runtime) for runtime in Runtime},
        **{f"warm_pool_{runtime}_size": 1 for runtime in Runtime},
        "code_cache_dir": folder / "cache",
        "container_sharing": "worker",
        "python_bytecode": "never",
        "build_cache": "never",
    }
    return load_local(None).model_copy(update=changes)


def misses(judged: Iterable[Judged]) -> str:
    """Return the table of misses."""
    return "\n".join(str(one) for one in judged if not one.is_right)


async def test_the_right_cause_is_named_and_hardly_a_wrong_one(judged: list[Judged]) -> None:
    with_cause = [one for one in judged if one.program.cause is not None]
    right = sum(one.is_right for one in with_cause) / len(with_cause)
    wrong = sum(one.is_wrong for one in judged) / len(judged)
    print(f"\n{right:.1%} of {len(with_cause)} right, {wrong:.1%} of {len(judged)} wrong")
    print(misses(judged))
    assert right >= RIGHT, misses(judged)
    assert wrong <= WRONG, misses(judged)


async def test_an_ordinary_failure_has_no_hint(judged: list[Judged]) -> None:
    plain = [one for one in judged if one.program.cause is None]
    for one in plain:
        assert one.result.hint is None or OUTCOMES[one.result.error_type].hint is not None, one


async def test_every_hint_has_both_languages_and_no_empty_field(judged: list[Judged]) -> None:
    for one in judged:
        if one.result.cause is not None:
            assert one.result.hint, one
            assert not re.search(r"\{\w*\}", one.result.hint), one


async def test_the_catalogue_has_programs_of_each_language_and_ordinary_failures() -> None:
    assert len(PROGRAMS) >= 90
    assert min(Counter(program.runtime for program in PROGRAMS).values()) >= 10
    assert sum(program.cause is None for program in PROGRAMS) >= 15
