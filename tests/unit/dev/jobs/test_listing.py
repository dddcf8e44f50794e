from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from nanoagent.dev.jobs import listing, result, table
from nanoagent.dev.jobs.listing import Job, Query, State, query_of
from nanoagent.dev.jobs.outputs import files_of
from nanoagent.dev.sender.delivery import ClaimedRequest
from nanoagent.model.errors import InvalidCall
from nanoagent.results import job_index

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW_MS = 1_700_000_000_000


class Index:
    """The index as `Results` reads it: entries, the newest first, and claims."""

    def __init__(self, entries: Sequence[job_index.Entry], claims: Sequence[ClaimedRequest] = ()) -> None:
        self._entries = [
            (NOW_MS - 1000 * number, job_index._encoder.encode(entry)) for number, entry in enumerate(entries)
        ]
        self._claims = list(claims)

    async def running(self) -> list[ClaimedRequest]:
        return self._claims

    async def time_ms(self) -> int:
        return NOW_MS

    async def entries(self, *, newest: str, oldest_ms: int, count: int) -> list[tuple[str, bytes]]:
        end = NOW_MS + 1 if newest == "+" else int(newest.partition("-")[0])
        return [(f"{ms}-0", data) for ms, data in self._entries if oldest_ms <= ms <= end][:count]


def entry(request_id: str, status: str = "SUCCESS", **fields: Any) -> job_index.Entry:
    return job_index.Entry(**({"request_id": request_id, "function_id": "f", "status": status} | fields))


def claim(request_id: str, *, is_live: bool = True) -> ClaimedRequest:
    about = job_index.About("f", 128)
    return ClaimedRequest(
        request_id=request_id, started_at_ms=NOW_MS - 5000, age_ms=5000, is_live=is_live, about=about
    )


async def listed(index: Index, query: Query = Query()) -> list[tuple[str, str]]:  # noqa: B008 - immutable
    jobs = await listing.recent(index, query)  # type: ignore[arg-type]
    return [(job.request_id, job.state) for job in jobs]


async def test_running_jobs_come_first_then_the_newest():
    index = Index([entry("new"), entry("old")], [claim("lost", is_live=False), claim("runs")])
    assert await listed(index) == [
        ("runs", "RUNNING"),
        ("lost", "WAITING"),
        ("new", "SUCCESS"),
        ("old", "SUCCESS"),
    ]


async def test_a_failed_attempt_is_listed_until_a_later_attempt_runs_or_ends():
    index = Index(
        [entry("ended"), *(entry(request, "WAITING") for request in ("ended", "runs", "waits", "waits"))],
        [claim("runs")],
    )
    assert await listed(index) == [("runs", "RUNNING"), ("ended", "SUCCESS"), ("waits", "WAITING")]


async def test_jobs_are_selected():
    index = Index(
        [entry("a", "FAILED"), entry("b", "TIMEOUT"), entry("c"), entry("d", "FAILED", function_id="g")],
        [claim("r")],
    )
    for query, requests in (
        (query_of("", [], "", 20, failed=True), "abd"),
        (query_of("g", [], "", 20, failed=False), "d"),
        (query_of("", ["timeout", "Running"], "", 20, failed=False), "rb"),
        (query_of("", [], "1s", 20, failed=False), "rab"),
        (query_of("", [], "", 2, failed=False), "ra"),
    ):
        assert "".join(request for request, _ in await listed(index, query)) == requests


async def test_many_pages_are_read_until_there_are_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listing, "_PAGE", 3)
    index = Index([entry(f"r{number}", "FAILED" if number % 5 == 0 else "SUCCESS") for number in range(20)])
    failed = query_of("", ["failed"], "", 20, failed=False)
    assert [request for request, _ in await listed(index, failed)] == ["r0", "r5", "r10", "r15"]
    found = await listing.last_of(index, "r19")  # type: ignore[arg-type]
    assert found is not None
    assert await listing.last_of(index, "no") is None  # type: ignore[arg-type]


async def test_a_status_of_a_later_version_is_left_out():
    assert await listed(Index([entry("a", "NEW"), entry("b")])) == [("b", "SUCCESS")]


def test_every_wrong_option_is_told():
    with pytest.raises(InvalidCall) as caught:
        query_of("", ["done"], "yesterday", 0, failed=False)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "--status done",
        "--since yesterday",
        "--limit 0",
    ]


# --- the table


def job(request_id: str = "send-1234567890ab", **fields: Any) -> Job:
    defaults: dict[str, Any] = {"function_id": "hello", "state": State.SUCCESS, "at_ms": NOW_MS - 5000}
    return Job(**(defaults | {"request_id": request_id} | fields))


FAILED: dict[str, Any] = {
    "state": State.FAILED,
    "error_type": "USER_ERROR",
    "message": "ValueError: \x1b[31m" + "long " * 30,
    "start": "warm",
    "duration_ms": 1234,
    "peak_memory_bytes": 100 << 20,
    "memory_mb": 10_240,
}


def shown(jobs: list[Job], *, width: int = 80, is_terminal: bool = True) -> list[str]:
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=is_terminal, color_system=None)
    table.show(jobs, NOW_MS, console)
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "request_id", ["r", "send-1234567890ab", "123e4567-e89b-12d3-a456-426614174000", "x" * 80]
)
@pytest.mark.parametrize("function_id", ["f", "한글함수이름" * 8, "x" * 48, "a\x1bb"])
def test_the_table_fits_the_terminal_and_has_no_control_characters(
    width: int, request_id: str, function_id: str
):
    lines = shown([job(request_id, function_id=function_id, **FAILED), job()], width=width)
    assert all(cell_len(line.rstrip()) <= width for line in lines)
    assert all(line.isprintable() for line in lines)
    assert any(request_id in line for line in lines)
    assert any("USER_ERROR: ValueError" in line for line in lines)


def test_the_table_says_what_a_person_wants_to_know():
    running = job("r2", state=State.RUNNING, duration_ms=65_000, memory_mb=64, at_ms=NOW_MS - 65_000)
    lines = [line.rstrip() for line in shown([running, job(**FAILED)], width=100)]
    assert lines[:3] == [
        "REQUEST            FUNCTION  STATUS   START  AGE  TIME    PEAK MiB",
        "r2                 hello     RUNNING  -      65s  65.0 s  -/64",
        "send-1234567890ab  hello     FAILED   warm   5s   1.2 s   100.0/10240",
    ]


def test_a_pipe_gets_one_line_for_each_job_and_nothing_is_cut():
    lines = shown([job("x" * 128, **FAILED), job(function_id="a b")], width=40, is_terminal=False)
    assert len(lines) == 3
    cells = lines[1].split(maxsplit=7)
    assert cells[:7] == [
        "x" * 128,
        "hello",
        "FAILED",
        "warm",
        "2023-11-14T22:13:15.000Z",
        "1234",
        "100.0/10240",
    ]
    assert cells[7].startswith("USER_ERROR: ValueError: \\x1b[31mlong")
    assert lines[2].split()[1] == "a_b"


@pytest.mark.parametrize(
    ("ms", "text"),
    [(-5, "0s"), (119_999, "119s"), (120_000, "2m"), (7_200_000, "2h"), (172_800_000, "2d")],
)
def test_an_age_has_one_unit(ms: int, text: str):
    assert table.age(ms) == text


# --- output of programs


def test_the_output_of_a_program_cannot_control_the_terminal():
    assert (
        result.printable("a\tb\r\nred \x1b[31m\x07\x9b \u202e") == "a\tb\nred \\x1b[31m\\x07\\x9b \\u202e\n"
    )


# --- links


@pytest.mark.parametrize(
    ("link", "bucket", "name"),
    [
        ("https://s3.eu-west-1.amazonaws.com/data/outputs/r1/a%20b.txt", "data", "a b.txt"),
        ("http://127.0.0.1:1/data/outputs/r1/sub/%ED%95%9C.txt?X-Amz-Signature=1", "data", "sub/한.txt"),
        ("https://data.s3.eu-west-1.amazonaws.com/outputs/r1/a?X-Amz-Signature=1", "data", "a"),
        ("http://s3/data/outputs/r1/outputs/r1/x", "data", "outputs/r1/x"),
    ],
)
def test_the_object_of_a_link_is_found(link: str, bucket: str, name: str):
    (file,) = files_of({"outputFiles": [link]}, "r1", "")
    assert (file.bucket, file.key, file.name, file.problem) == (bucket, f"outputs/r1/{name}", name, None)
    (file,) = files_of({"outputFiles": [link]}, "r1", "mine")
    assert file.bucket == "mine"


@pytest.mark.parametrize("link", ["https://s3/data/outputs/other/x", "https://s3/data/code.zip", "x", ""])
def test_a_link_of_something_else_is_refused(link: str):
    (file,) = files_of({"outputFiles": [link]}, "r1", "")
    assert (file.key, file.problem) == ("", "its link is not one of this request")
