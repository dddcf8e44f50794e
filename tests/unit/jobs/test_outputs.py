from __future__ import annotations

import asyncio
import json
import mimetypes
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nanoagent.jobs.output_names import content_type_of, name_problem
from nanoagent.jobs.outputs import OutputUploader
from nanoagent.jobs.shortening import shortened
from nanoagent.model import result as results
from nanoagent.model.errors import StorageError
from nanoagent.model.result import OutputError, Result, Status
from nanoagent.storage.folder import FolderStore
from nanoagent.supervisor import gap
from nanoagent.supervisor.output import OutputFile
from nanoagent.telemetry.metrics import Metrics
from support.doubles.fakes import make_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNHURRIED = hypothesis_settings(deadline=None)  # the machine is shared

# As Python knows them, whatever the host's own files say.
KNOWN_TYPES = {"application/octet-stream"}.union(
    *(table.values() for table in mimetypes.MimeTypes().types_map)
)
LINK = "https://s3.ap-northeast-2.amazonaws.com/data/outputs/r1/"


class Store(FolderStore):
    """A folder store that remembers what it was told beside the bytes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "https://s3.ap-northeast-2.amazonaws.com")
        self.types: dict[str, str] = {}
        self.saved: set[str] = set()
        self.now = 0
        self.most = 0
        self.expires_s: int | None = None

    async def put(
        self,
        bucket: str,
        key: str,
        source: Path,
        *,
        content_type: str,
        to_be_saved: bool = False,
        fencing_token: int = 0,
    ) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.types[key] = content_type
        if to_be_saved:
            self.saved.add(key)
        await asyncio.sleep(0)
        await super().put(
            bucket,
            key,
            source,
            content_type=content_type,
            to_be_saved=to_be_saved,
            fencing_token=fencing_token,
        )
        self.now -= 1

    async def presigned_url(self, bucket: str, key: str, *, expires_s: int) -> str:
        self.expires_s = expires_s
        return f"https://signed/{bucket}/{key}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store/data").mkdir(parents=True)
    return Store(tmp_path / "store")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def make_uploader(store: Store, metrics: Metrics) -> Callable[..., OutputUploader]:
    def make(**changes: Any) -> OutputUploader:
        return OutputUploader(store, make_settings(**changes), metrics)

    return make


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., OutputFile]:
    """Make a file as the session spools it."""
    folder = tmp_path / "stage"
    folder.mkdir()

    def make(path: str, content: bytes = b"content") -> OutputFile:
        staged = folder / str(len(list(folder.iterdir())))
        staged.write_bytes(content)
        return OutputFile(path, staged, len(content))

    return make


def a_result(**changes: Any) -> Result:
    blank = Result(request_id="r1", function_id="f", runtime="python", status=Status.SUCCESS, exit_code=0)
    return msgspec.structs.replace(blank, **changes)


# --- files


async def test_a_file_lies_where_the_contract_says_and_is_linked_so(
    make_uploader: Callable[..., OutputUploader],
    stage: Callable[..., OutputFile],
    store: Store,
    metrics: Metrics,
):
    files = [stage("plot.png", b"\x89PNG"), stage("deep/er/data.csv", b"a,b\n")]
    links, refused = await make_uploader().upload("r1", files)
    assert links == [LINK + "plot.png", LINK + "deep/er/data.csv"]
    assert refused == []
    assert store.path("data", "outputs/r1/plot.png").read_bytes() == b"\x89PNG"
    assert store.path("data", "outputs/r1/deep/er/data.csv").read_bytes() == b"a,b\n"
    assert metrics.registry.get_sample_value("worker_outputs_uploaded_bytes_total") == 8


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        ("결과 1.txt", "%EA%B2%B0%EA%B3%BC%201.txt"),
        ("a+b&c=d?e#f.txt", "a%2Bb%26c%3Dd%3Fe%23f.txt"),
        ("100%.txt", "100%25.txt"),
        ("semi;colon:at@.txt", "semi%3Bcolon%3Aat%40.txt"),
        ("quote'\"<>.txt", "quote%27%22%3C%3E.txt"),
        ("-_.~", "-_.~"),
    ],
)
async def test_links_are_percent_encoded(
    make_uploader: Callable[..., OutputUploader],
    stage: Callable[..., OutputFile],
    store: Store,
    path: str,
    quoted: str,
):
    (link,), _ = await make_uploader().upload("r1", [stage(path)])
    assert link == LINK + quoted
    assert unquote(link) == LINK + path
    assert store.path("data", f"outputs/r1/{path}").exists()


async def test_the_bucket_is_the_settings_and_the_link_the_stores(
    make_uploader: Callable[..., OutputUploader], stage: Callable[..., OutputFile], store: Store
):
    store.path("other", "x").parent.mkdir()
    uploader = make_uploader(s3_user_data_bucket="other")
    links, _ = await uploader.upload("r1", [stage("x")])
    assert links == [store.plain_url("other", "outputs/r1/x")]


async def test_links_are_presigned_where_that_is_wanted(
    make_uploader: Callable[..., OutputUploader], stage: Callable[..., OutputFile], store: Store
):
    uploader = make_uploader(output_url_style="presigned", output_url_expires_seconds=77)
    links, _ = await uploader.upload("r1", [stage("x y")])
    assert links == ["https://signed/data/outputs/r1/x y"]
    assert store.expires_s == 77


async def test_of_many_files_only_some_are_on_their_way_at_a_time_and_links_keep_their_order(
    make_uploader: Callable[..., OutputUploader], stage: Callable[..., OutputFile], store: Store
):
    links, _ = await make_uploader().upload("r1", [stage(f"{number}") for number in range(20)])
    assert links == [f"{LINK}{number}" for number in range(20)]
    assert 1 < store.most <= 4


async def test_a_run_with_many_files_does_not_delay_other_uploads(
    make_uploader: Callable[..., OutputUploader], stage: Callable[..., OutputFile], store: Store
):
    uploader = make_uploader()
    many, one = [stage(f"{number}") for number in range(50)], [stage("only")]
    await asyncio.gather(uploader.upload("r1", many), uploader.upload("r2", one))
    assert list(store.types).index("outputs/r2/only") < 10


async def test_when_one_upload_fails_all_others_stop(
    stage: Callable[..., OutputFile], store: Store, metrics: Metrics
):
    """It could arrive over what the next attempt has stored."""
    under_way: set[str] = set()

    async def put(bucket: str, key: str, source: Path, **_: Any) -> None:
        if key.endswith("bad"):
            await asyncio.sleep(0)
            raise StorageError("no")
        under_way.add(key)
        try:
            await asyncio.Event().wait()
        finally:
            under_way.discard(key)

    store.put = put  # type: ignore[method-assign]
    uploader = OutputUploader(store, make_settings(), metrics)
    with pytest.raises(StorageError, match="no"):
        await uploader.upload("r1", [stage("slow"), stage("bad"), stage("slower")])
    assert not under_way


async def test_a_run_that_left_nothing_uploads_nothing(
    make_uploader: Callable[..., OutputUploader], store: Store
):
    assert await make_uploader().upload("r1", []) == ([], [])
    assert store.types == {}


@pytest.mark.parametrize(
    ("path", "shown", "reason"),
    [
        ("a\nb", "a\nb", "control characters"),
        ("nul\0", "nul\0", "control characters"),
        ("\udcff.txt", "\ufffd.txt", "not valid UTF-8"),
        ("\u202etxt.exe", "\u202etxt.exe", "control characters"),
        ("a\u200fb", "a\u200fb", "control characters"),
        ("a\u2028b", "a\u2028b", "control characters"),
        ("a\u2029b", "a\u2029b", "control characters"),
        ("a\x85b", "a\x85b", "control characters"),
        ("a\uffffb", "a\uffffb", "control characters"),
        ("../up", "../up", "an empty part, . or .."),
        ("a/../b", "a/../b", "an empty part, . or .."),
        ("a//b", "a//b", "an empty part, . or .."),
        ("/abs", "/abs", "an empty part, . or .."),
        ("a/", "a/", "an empty part, . or .."),
        ("", "", "an empty part, . or .."),
        (".nanoagent/ai.jsonl", ".nanoagent/ai.jsonl", "reserved for the worker"),
        (".nanoagent", ".nanoagent", "reserved for the worker"),
        ("가" * 400, "가" * 400, "longer than 1024 bytes"),
    ],
)
async def test_a_bad_name_is_refused_by_name_and_the_others_are_uploaded(
    make_uploader: Callable[..., OutputUploader],
    stage: Callable[..., OutputFile],
    path: str,
    shown: str,
    reason: str,
):
    links, refused = await make_uploader().upload("r1", [stage(path), stage("good")])
    assert links == [LINK + "good"]
    (error,) = refused
    assert error.path == shown
    assert reason in str(error.reason)
    results.encode(a_result(output_errors=[error.in_("ko")]))  # can be told


async def test_what_a_run_and_its_models_said_lies_beside_its_outputs(
    make_uploader: Callable[..., OutputUploader], store: Store, tmp_path: Path
):
    uploader, file = make_uploader(), tmp_path / "ai.jsonl"
    await uploader.upload_ai_record("r1", file)  # it has asked none
    assert not store.path("data", "outputs/r1/.nanoagent/ai.jsonl").exists()
    file.write_text('{"path": "/api/chat"}\n')
    await uploader.upload_ai_record("r1", file)
    assert store.path("data", "outputs/r1/.nanoagent/ai.jsonl").read_bytes() == file.read_bytes()
    assert store.saved == {"outputs/r1/.nanoagent/ai.jsonl"}


async def test_a_name_of_a_hundred_kilobytes_is_told_shortened(
    make_uploader: Callable[..., OutputUploader], stage: Callable[..., OutputFile]
):
    """No honest supervisor sends one; of another's, a hundred would make a result of ten megabytes."""
    links, (error,) = await make_uploader().upload("r1", [stage("\n" * 100_000)])
    assert links == []
    assert error.path == "\n" * 1024


def test_a_key_of_1024_bytes_is_the_longest():
    assert name_problem("x", "k" * 1024) is None
    assert name_problem("x", "k" * 1025) is not None


async def test_a_store_that_fails_fails_the_upload(
    make_uploader: Callable[..., OutputUploader], stage: Callable[..., OutputFile]
):
    with pytest.raises(StorageError):
        await make_uploader(s3_user_data_bucket="absent").upload("r1", [stage("x")])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.csv", "text/csv; charset=utf-8"),
        ("a.html", "text/html; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.png", "image/png"),
        ("dir.txt/a.JPG", "image/jpeg"),
        ("a.tar.gz", "application/octet-stream"),
        ("a.csv.gz", "application/octet-stream"),
        ("a", "application/octet-stream"),
        ("a.unknown-kind", "application/octet-stream"),
        ("결과.txt", "text/plain; charset=utf-8"),
        # What mimetypes.guess_type would take for a URL that names its own type, or for one that cannot be.
        ("data:text/html,x", "application/octet-stream"),
        ("data:text/html,x.png", "image/png"),
        ("data:가/나,x", "application/octet-stream"),
        ("data:text/html;x=y\N{BULLET}/z,", "application/octet-stream"),
        ("http:[x.txt", "text/plain; charset=utf-8"),
        ("a.png#.html", "text/html; charset=utf-8"),
        ("a.html?x.png", "image/png"),
        (".png", "application/octet-stream"),
    ],
)
def test_the_content_type_follows_the_name(name: str, expected: str):
    assert content_type_of(name) == expected


async def test_the_store_is_told_the_content_type(
    make_uploader: Callable[..., OutputUploader], stage: Callable[..., OutputFile], store: Store
):
    await make_uploader().upload("r1", [stage("a.png")])
    assert store.types == {"outputs/r1/a.png": "image/png"}


@pytest.mark.parametrize(
    "name",
    [
        "a.html",
        "a.HTM",
        "a.svg",
        "a.xhtml",
        "a.xml",
        "a.js",
        "a.mjs",
        "a.mht",
        "a.css",
        "a.swf",
        "a",
        "a.exe",
    ],
)
async def test_what_could_run_under_the_buckets_name_is_to_be_saved(
    make_uploader: Callable[..., OutputUploader], stage: Callable[..., OutputFile], store: Store, name: str
):
    await make_uploader().upload("r1", [stage(name)])
    assert store.saved == {f"outputs/r1/{name}"}


@pytest.mark.parametrize(
    "name", ["a.txt", "a.csv", "a.json", "a.pdf", "a.png", "a.JPG", "a.gif", "a.mp4", "a.wav", "a.log.txt"]
)
async def test_what_only_shows_is_shown(
    make_uploader: Callable[..., OutputUploader], stage: Callable[..., OutputFile], store: Store, name: str
):
    await make_uploader().upload("r1", [stage(name)])
    assert store.saved == set()


async def test_a_log_is_shown(make_uploader: Callable[..., OutputUploader], store: Store):
    await make_uploader(max_result_bytes=4096).document(a_result(stdout="<script>" * 1000), "en")
    assert (store.types, store.saved) == ({"logs/r1/stdout.txt": "text/plain; charset=utf-8"}, set())


@UNHURRIED
@given(path=st.text(min_size=1) | st.from_regex(r"(data|http|file):[a-z/;,=\w\[\]]*", fullmatch=True))
def test_every_content_type_comes_from_the_table(path: str):
    kind, _, rest = content_type_of(path).partition(";")
    assert kind in KNOWN_TYPES
    assert rest == (" charset=utf-8" if kind.startswith("text/") else "")


# --- the document


async def test_a_result_that_fits_is_left_as_it_is(
    make_uploader: Callable[..., OutputUploader], store: Store
):
    result = a_result(stdout="hello")
    assert await make_uploader().document(result, "en") == results.encode(result)
    assert store.types == {}


async def test_a_result_of_just_the_limit_fits_and_one_byte_more_does_not(
    make_uploader: Callable[..., OutputUploader], store: Store
):
    empty = len(results.encode(a_result()))
    uploader = make_uploader(max_result_bytes=8192)
    await uploader.document(a_result(stdout="x" * (8192 - empty)), "en")
    assert store.types == {}
    await uploader.document(a_result(stdout="x" * (8193 - empty)), "en")
    assert store.types == {"logs/r1/stdout.txt": "text/plain; charset=utf-8"}


async def test_full_logs_are_stored_and_linked_and_the_document_keeps_head_and_tail(
    make_uploader: Callable[..., OutputUploader], store: Store
):
    stdout, stderr = "HEAD" + "가" * 50_000 + "TAIL", "E" * 70_000
    result = a_result(stdout=stdout, stderr=stderr, stdout_truncated_bytes=5)
    document = json.loads(await make_uploader(max_result_bytes=16_384).document(result, "en"))
    link = "https://s3.ap-northeast-2.amazonaws.com/data/logs/r1/"
    assert (document["stdoutUrl"], document["stderrUrl"]) == (link + "stdout.txt", link + "stderr.txt")
    assert store.path("data", "logs/r1/stdout.txt").read_text() == stdout
    assert store.path("data", "logs/r1/stderr.txt").read_text() == stderr
    head, gap, tail = document["stdout"].split("\n")
    assert (head[:4], tail[-4:]) == ("HEAD", "TAIL")
    cut = len(stdout.encode()) - len(head.encode()) - len(tail.encode())
    assert gap == f"… {5 + cut} bytes cut …"
    assert document["stdoutTruncatedBytes"] == 5 + cut
    assert result.stdout == stdout  # the given one is left alone


async def test_an_empty_log_is_not_stored(make_uploader: Callable[..., OutputUploader], store: Store):
    document = json.loads(
        await make_uploader(max_result_bytes=4096).document(a_result(stderr="x" * 10_000), "en")
    )
    assert list(store.types) == ["logs/r1/stderr.txt"]
    assert document["stdoutUrl"] is None


async def test_full_logs_are_presigned_where_links_are(make_uploader: Callable[..., OutputUploader]):
    uploader = make_uploader(max_result_bytes=4096, output_url_style="presigned")
    document = json.loads(await uploader.document(a_result(stdout="x" * 10_000), "en"))
    assert document["stdoutUrl"] == "https://signed/data/logs/r1/stdout.txt"


async def test_logs_that_cannot_be_stored_fail_the_document(make_uploader: Callable[..., OutputUploader]):
    uploader = make_uploader(max_result_bytes=4096, s3_user_data_bucket="absent")
    with pytest.raises(StorageError):
        await uploader.document(a_result(stdout="x" * 10_000), "en")


def test_of_links_that_do_not_all_fit_some_are_kept_and_the_others_counted():
    links = [f"{LINK}{number:0500}" for number in range(100)]
    document = json.loads(shortened(a_result(output_files=links, stdout="short"), 8192, "en"))
    kept = len(document["outputFiles"])
    assert kept == 12
    assert document["outputFiles"] == links[:kept]
    said = f"{100 - kept} links do not fit into the result"
    assert document["outputErrors"] == [{"path": "", "reason": said}]


def test_a_hundred_long_names_that_were_refused_cost_no_link():
    """In JSON a control character takes six bytes: these names take 600 KB."""
    errors = [OutputError("\1" * 1024, "is a link") for _ in range(100)]
    links = [f"{LINK}{number}" for number in range(100)]
    document = json.loads(shortened(a_result(output_files=links, output_errors=errors), 512 * 1024, "en"))
    assert document["outputFiles"] == links
    assert len(document["outputErrors"]) == 51
    assert document["outputErrors"][-1]["reason"] == (
        "50 more files that were not uploaded do not fit into the result"
    )


nasty = st.text(
    st.sampled_from(["\0", "\x1f", '"', "\\", "가", "\U0001f600", "x", "\n", "\x7f", "\u2028"]), max_size=40
)


@st.composite
def a_nasty_result(draw: st.DrawFn) -> Result:
    def long_text(most: int) -> str:
        return (draw(nasty) * draw(st.integers(0, 4000)))[:most]

    return a_result(
        request_id="r" * 128,
        function_id=(draw(nasty.filter(str.isprintable)) * 256)[:256],
        stdout=long_text(100_000),
        stderr=long_text(100_000),
        stdout_truncated_bytes=draw(st.integers(0, 2**40)),
        error_message=long_text(300),  # as `container.judgment` bounds it
        hint=draw(st.none() | st.just("x" * 200)),
        output_files=[f"{LINK}{draw(nasty)}"] * draw(st.integers(0, 200)),
        output_errors=[OutputError(draw(nasty), draw(nasty))] * draw(st.integers(0, 200)),
        stdout_url=LINK + "stdout",
    )


@UNHURRIED
@given(result=a_nasty_result(), max_bytes=st.integers(4096, 100_000))
def test_a_shortened_result_always_fits_and_is_still_a_result(result: Result, max_bytes: int):
    document = shortened(result, max_bytes, "en")
    assert len(document) <= max_bytes
    read = results.decode(document)
    assert (read.request_id, read.status, read.error_message) == (
        result.request_id,
        result.status,
        result.error_message,
    )
    for stream in ("stdout", "stderr"):
        if getattr(read, stream) != getattr(result, stream):
            cut = getattr(read, f"{stream}_truncated_bytes") - getattr(result, f"{stream}_truncated_bytes")
            assert 0 < cut <= len(getattr(result, stream).encode())
            missing = getattr(read, f"{stream}_truncated_bytes")
            assert f"… {missing} bytes cut …" in getattr(read, stream)


@UNHURRIED
@given(result=a_nasty_result(), max_bytes=st.integers(4096, 20_000))
def test_a_document_always_fits(tmp_path_factory: pytest.TempPathFactory, result: Result, max_bytes: int):
    folder = tmp_path_factory.mktemp("store")
    (folder / "data").mkdir()
    uploader = OutputUploader(FolderStore(folder), make_settings(max_result_bytes=max_bytes), Metrics())
    document = asyncio.run(uploader.document(result, "en"))
    assert len(document) <= max_bytes
    assert results.decode(document).request_id == result.request_id


@pytest.mark.parametrize("locale", ["en", "ko"])
def test_a_log_that_was_cut_already_has_one_line_about_all_that_is_missing(locale: str):
    head, tail = "H" * 20_000, "가" * 10_000
    stdout = gap.joined(head, 1234, tail).in_(locale)
    document = json.loads(shortened(a_result(stdout=stdout, stdout_truncated_bytes=1234), 16_384, locale))
    parts = gap.split(document["stdout"])
    assert parts is not None
    assert document["stdout"] == gap.joined(parts[0], document["stdoutTruncatedBytes"], parts[1]).in_(locale)
    assert set(parts[0]) == {"H"}
    assert set(parts[1]) == {"가"}
    shown = len((parts[0] + parts[1]).encode())
    assert document["stdoutTruncatedBytes"] + shown == 1234 + len((head + tail).encode())


@pytest.mark.parametrize(("locale", "said"), [("en", "links do not fit"), ("ko", "링크 ")])
def test_what_does_not_fit_is_said_in_the_language_of_the_result(locale: str, said: str):
    links = [f"{LINK}{number:0500}" for number in range(100)]
    document = json.loads(shortened(a_result(output_files=links), 8192, locale))
    assert said in document["outputErrors"][0]["reason"]
