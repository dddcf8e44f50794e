from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import sys
import tempfile
import time
import zipfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.aws.clients import AwsClients
from nanoagent.code.archive import ArchiveLimits
from nanoagent.dev.jobs import cancel, result
from nanoagent.dev.sender import (
    command,
    delivery,
    dev,
    ignorefile,
    language,
    message,
    pack,
    package,
    selection,
    stages,
)
from nanoagent.dev.sender.ignorefile import IGNORE_FILE
from nanoagent.dev.sender.package import limits_of, packed
from nanoagent.dev.sender.selection import Reason
from nanoagent.model.errors import BrokerError, InvalidCall, ResultStoreError
from nanoagent.model.job import JobDefaults, Runtime
from nanoagent.model.message import MAX_MESSAGE_BYTES, parse_job
from support.checks.packs import extract
from support.doubles.fakes import make_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMITS = ArchiveLimits(zip_bytes=10_000, unpacked_bytes=20_000, file_bytes=15_000, entries=50)


def make(folder: Path, *paths: str, content: str = "x") -> Path:
    """Files with the same content; a path with `/` at its end is a folder."""
    for path in paths:
        place = folder / path
        if path.endswith("/"):
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content)
    return folder


def chosen(folder: Path) -> list[str]:
    return [entry.path for entry in selection.select(folder, max_entries=10_000).entries]


def left_out(folder: Path) -> dict[str, Reason]:
    return {left.path: left.reason for left in selection.select(folder, max_entries=10_000).left_out}


def refusal(code: Path, runtime: Runtime | None = None, limits: ArchiveLimits = LIMITS) -> str:
    with pytest.raises(InvalidCall) as refused, packed(code, runtime, limits):
        pass
    return str(refused.value)


def digest(code: Path) -> str:
    with packed(code, None, LIMITS) as code_:
        return code_.digest


# --- which files


def test_what_is_not_code_stays_here(tmp_path: Path):
    out: tuple[str, ...] = (
        ".git/config",
        ".git/objects/ab/c",
        ".venv/lib/x.py",
        "lib/__pycache__/a.pyc",
        ".DS_Store",
    )
    out += (
        "node_modules/.cache/babel/x",
        "web/node_modules/.cache/y",
        ".mypy_cache/z",
        "main.py~",
        ".#main.py",
    )
    kept = (
        "lib/a.py",
        "main.py",
        "node_modules/a/index.js",
        "build/out.js",
        ".gitignore",
        "cache/x",
        "m.pyc",
    )
    make(tmp_path, *out, *kept)

    assert chosen(tmp_path) == sorted(kept)
    assert set(left_out(tmp_path).values()) == {Reason.NOT_CODE}
    assert {".git/", ".venv/", "lib/__pycache__/", "node_modules/.cache/"} <= set(left_out(tmp_path))


def test_a_virtual_environment_is_known_by_its_settings_and_not_by_its_name(tmp_path: Path):
    make(tmp_path, "main.py", "venv/a.py", "my-env/pyvenv.cfg", "my-env/lib/b.py")
    assert chosen(tmp_path) == ["main.py", "venv/a.py"]


@pytest.mark.parametrize(
    "name",
    [
        *(".env", ".env.production", "config/.env.local", ".envrc", "keys/id_rsa", "id_ed25519", "cert.pfx"),
        *(".netrc", ".pypirc", ".git-credentials", "home/.aws/credentials", ".ssh/config", "main.tfstate"),
    ],
)
def test_a_secret_stays_here_and_is_named(tmp_path: Path, name: str):
    make(tmp_path, "main.py", name)
    assert chosen(tmp_path) == ["main.py"]
    assert list(left_out(tmp_path).values()) == [Reason.SECRET]
    assert name.startswith(next(iter(left_out(tmp_path))))


@pytest.mark.parametrize("name", [".env.example", "id_rsa.pub", "environment.py", "env/x", "secrets.py"])
def test_a_name_that_only_resembles_a_secret_is_sent(tmp_path: Path, name: str):
    assert chosen(make(tmp_path, name)) == [name]


@pytest.mark.parametrize(
    ("name", "secret", "public"),
    [
        ("tls.pem", "-----BEGIN EC PRIVATE KEY-----", "-----BEGIN CERTIFICATE-----"),
        ("tls.key", "-----BEGIN PRIVATE KEY-----", "a Keynote file"),
        ("account.json", '{"private_key": "-----BEGIN PRIVATE KEY-----\\nMIIE\\n"}', '{"a": 1}'),
        (".npmrc", "//registry/:_authToken=1", "package-lock=false"),
    ],
)
def test_the_contents_tell_a_private_key_from_a_certificate(
    tmp_path: Path, name: str, secret: str, public: str
):
    make(tmp_path, f"a/{name}", content=secret)
    make(tmp_path, f"b/{name}", content=public)
    assert [path for path in chosen(tmp_path) if name in path] == [f"b/{name}"]
    assert left_out(tmp_path) == {f"a/{name}": Reason.SECRET}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_ignore_file_leaves_out_and_takes_back_in(tmp_path: Path, end: str, encoding: str):
    make(tmp_path, "main.py", ".env", "data/a.csv", "data/keep.csv", "docs/b", "src/docs/c", ".venv/d")
    lines = ["/docs/", "# a comment", "data/*", "!data/keep.csv", "!.env", "!.venv/"]
    (tmp_path / IGNORE_FILE).write_bytes(end.join(lines).encode(encoding))

    assert chosen(tmp_path) == [".env", ".venv/d", "data/keep.csv", "main.py", "src/docs/c"]
    assert left_out(tmp_path)["docs/"] == Reason.IGNORED


@pytest.mark.parametrize("content", [b"!\n", b"\xff\xfe\x00"])
def test_an_ignore_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes):
    make(tmp_path, "main.py")
    (tmp_path / IGNORE_FILE).write_bytes(content)
    assert IGNORE_FILE in refusal(tmp_path)


def test_an_empty_folder_is_sent(tmp_path: Path):
    assert chosen(make(tmp_path, "main.py", "data/in/")) == ["data/in/", "main.py"]


def test_links_inside_the_folder_stay_links_and_lead_to_what_is_sent(tmp_path: Path):
    make(tmp_path, "lib/libx.so.1.2", "node_modules/tool/cli.js", "node_modules/.bin/", "main.py")
    links = {
        "lib/libx.so.1": "libx.so.1.2",
        "lib/libx.so": "libx.so.1",
        "node_modules/.bin/tool": "../tool/cli.js",
        "folder": "lib",
        "absolute": str(tmp_path / "lib/libx.so"),
        "roundabout": f"../{tmp_path.name}/main.py",
    }
    for path, target in links.items():
        (tmp_path / path).symlink_to(target)
    found = {
        entry.path: entry.link for entry in selection.select(tmp_path, max_entries=99).entries if entry.link
    }
    assert found == links | {"absolute": "lib/libx.so.1.2", "roundabout": "main.py"}


def test_a_link_that_leads_out_is_replaced_by_what_it_leads_to_if_asked_for(tmp_path: Path):
    shared = make(tmp_path / "shared", "a.py", "sub/b.py")
    function = make(tmp_path / "function", "main.py")
    (function / "shared").symlink_to("../shared")
    (function / "one.py").symlink_to(shared / "a.py")
    (shared / "again").symlink_to(shared)
    (shared / "main.py").symlink_to(function / "main.py")

    selected = selection.select(function, max_entries=99, follow_outside_links=True)

    kinds = {entry.path: entry.link or "file" for entry in selected.entries}
    assert kinds == {
        "main.py": "file",
        "one.py": "file",
        "shared/a.py": "file",
        "shared/sub/b.py": "file",
        "shared/main.py": "../main.py",
    }
    assert {left.path: left.reason for left in selected.left_out} == {"shared/again/": Reason.LOOP}


def test_what_cannot_be_sent_is_left_out_and_told(tmp_path: Path):
    make(tmp_path, "main.py", ".env")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, target in {"dangling": "nowhere", "a": "b", "b": "a", "public": ".env"}.items():
            (tmp_path / name).symlink_to(target)
        assert chosen(tmp_path) == ["main.py"]
        assert left_out(tmp_path) == {
            "pipe": Reason.SPECIAL,
            "socket": Reason.SPECIAL,
            "dangling": Reason.DANGLING,
            "a": Reason.LOOP,
            "b": Reason.LOOP,
            "public": Reason.TARGET,
            ".env": Reason.SECRET,
        }


@pytest.mark.parametrize("name", [b"\xff.py", b"a\nb", b"a\\b"])
def test_a_name_that_the_worker_refuses_is_refused_here(tmp_path: Path, name: bytes):
    make(tmp_path, "main.py")
    (tmp_path / os.fsdecode(name)).write_text("x")
    assert "name" in refusal(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    make(tmp_path, "main.py")
    (tmp_path / "memory").symlink_to("/proc/self/mem")  # whose first page nobody can read, not even root
    with (
        pytest.raises(InvalidCall, match="cannot be packed"),
        packed(tmp_path, None, LIMITS, follow_outside_links=True),
    ):
        pass


def test_modes_that_forbid_reading_are_named_before_anything_is_packed():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folder is closed to other users
        folder = make(Path(name), "main.py", "locked/a", "secret.txt")
        for path, mode in {"": 0o755, "locked": 0, "secret.txt": 0}.items():
            (folder / path).chmod(mode)
        found = as_another_user(lambda: refusal(folder))
        (folder / "locked").chmod(0o700)
    assert "locked/: cannot be read: Permission denied" in found
    assert "secret.txt: cannot be read: Permission denied" in found


def test_a_folder_with_too_many_files_is_refused_while_they_are_counted(tmp_path: Path):
    make(tmp_path, "main.py", *(f"many/{number}" for number in range(60)))
    assert "has more than 50 files and folders (CODE_MAX_ENTRIES)" in refusal(tmp_path)


# --- the zip and its digest


def test_a_folder_becomes_a_zip_of_its_files_at_the_root(tmp_path: Path):
    make(tmp_path, "lib/util.py", "main.py", content="print(1)")
    with zipfile.ZipFile(io.BytesIO(pack(tmp_path))) as archive:
        assert archive.namelist() == ["lib/util.py", "main.py"]
        assert archive.read("main.py") == b"print(1)"


def test_the_digest_is_of_contents_and_not_of_times_or_places(tmp_path: Path):
    first, second = (make(tmp_path / name, "main.py", "a/b", "c") for name in ("first", "second"))
    os.utime(second / "main.py", (1, 1))
    assert digest(first) == digest(second)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "main.py").write_text("y"),
        lambda folder: (folder / "main.py").chmod(0o755),
        lambda folder: (folder / "more").write_text(""),
        lambda folder: (folder / "more").mkdir(),
        lambda folder: (folder / "a/b").rename(folder / "a/c"),
        lambda folder: (folder / "link").symlink_to("main.py"),
    ],
)
def test_whatever_a_run_could_see_changes_the_digest(tmp_path: Path, change: Any):
    before = digest(make(tmp_path, "main.py", "a/b"))
    change(tmp_path)
    assert digest(tmp_path) != before


def test_two_functions_of_the_same_name_have_different_keys_and_the_same_code_has_one(tmp_path: Path):
    keys = []
    for owner, content in {"ann": "print('a')", "bob": "print('b')", "eve": "print('a')"}.items():
        with packed(make(tmp_path / owner / "hello", "main.py", content=content), None, LIMITS) as code:
            keys.append(code.key)
    assert all(key.startswith("functions/hello/") for key in keys)
    assert keys[0] == keys[2] != keys[1]


def test_modes_times_and_links_are_in_the_zip(tmp_path: Path):
    make(tmp_path, "tool", "data")
    (tmp_path / "tool").chmod(0o750)
    (tmp_path / "data").chmod(0o600)
    (tmp_path / "link").symlink_to("tool")
    os.utime(tmp_path / "data", (1_700_000_001, 1_700_000_001))
    with zipfile.ZipFile(io.BytesIO(pack(tmp_path))) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        assert archive.read("link") == b"tool"
    assert {name: oct(info.external_attr >> 16) for name, info in infos.items()} == {
        "tool": "0o100755",
        "data": "0o100644",
        "link": "0o120777",
    }
    assert infos["data"].date_time == (2023, 11, 14, 22, 13, 20)
    assert infos["data"].extra == b"UT\x05\x00\x01" + (1_700_000_001).to_bytes(4, "little")


@pytest.mark.parametrize("moment", [0, -5, 5_000_000_000])
def test_times_that_a_zip_cannot_hold_do_not_stop_it(tmp_path: Path, moment: int):
    make(tmp_path, "main.py")
    os.utime(tmp_path / "main.py", (moment, moment))
    with zipfile.ZipFile(io.BytesIO(pack(tmp_path))) as archive:
        assert archive.testzip() is None


def test_what_is_packed_is_what_the_worker_unpacks(tmp_path: Path):
    folder = make(
        tmp_path / "function", "main.py", "lib/함수.py", "tool", "data/in/", "한글 파일", "lib/sub/a"
    )
    (folder / "tool").chmod(0o755)
    for path, target in {
        "link": "lib/sub",
        "lib/up": "../tool",
        "lib/sub/twice": "../up",
        "self": ".",
    }.items():
        (folder / path).symlink_to(target)
    os.utime(folder / "main.py", (1_700_000_001, 1_700_000_001))
    (tmp_path / "code.zip").write_bytes(pack(folder))

    extract(tmp_path / "code.zip", tmp_path / "tree", LIMITS)

    assert described(tmp_path / "tree") == described(folder)
    assert (tmp_path / "tree/main.py").stat().st_mtime == 1_700_000_001


def described(folder: Path) -> dict[str, tuple[str, bool]]:
    """Each path with its target or content, and whether it is executable."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            content, is_executable = str(path.readlink()), False
        else:
            content = "" if path.is_dir() else path.read_text()
            is_executable = path.is_file() and bool(path.stat().st_mode & 0o100)
        found[str(path.relative_to(folder))] = (content, is_executable)
    return found


# --- what is named on the command line


@pytest.mark.parametrize(
    ("file", "runtime", "entry"),
    [
        ("main.py", Runtime.PYTHON, "main.py"),
        ("hello.py", Runtime.PYTHON, "main.py"),
        ("hello.js", Runtime.NODEJS, "index.js"),
        ("hello.CPP", Runtime.CPP, "main.cpp"),
        ("hello.go", Runtime.GO, "main.go"),
    ],
)
def test_one_file_is_sent_as_the_entry_file(tmp_path: Path, file: str, runtime: Runtime, entry: str):
    make(tmp_path, file, ".env")
    with packed(tmp_path / file, None, LIMITS) as code, zipfile.ZipFile(code.zip) as archive:
        assert (code.runtime, code.files, archive.namelist()) == (runtime, 1, [entry])


@pytest.mark.parametrize(
    ("entry", "runtime"),
    [("main.py", "python"), ("index.js", "nodejs"), ("main.cpp", "cpp"), ("main.go", "go")],
)
@pytest.mark.parametrize("top", ["", "function/"])
def test_the_entry_file_tells_the_runtime(tmp_path: Path, top: str, entry: str, runtime: str):
    make(tmp_path, f"{top}{entry}", f"{top}lib/other")
    with packed(tmp_path, None, LIMITS) as code:
        assert code.runtime == runtime


def test_a_zip_is_sent_as_it_is(tmp_path: Path):
    file = tmp_path / "code.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("index.js", "1")
        archive.writestr("__MACOSX/._index.js", "2")
    with packed(file, None, LIMITS) as code:
        assert code.zip.read() == file.read_bytes() == pack(file)
        assert (code.runtime, code.function_id, code.files) == (Runtime.NODEJS, "code", 2)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".", "hello"),
        ("", "hello"),
        ("sub/..", "hello"),
        ("../hello/", "hello"),
        ("sub", "sub"),
        ("main.py", "hello"),
        ("tool.py", "tool"),
        ("code.v2.zip", "code.v2"),
        ("함수", "함수"),
        ("a\nb", "ab"),
        ("/", "unknown"),
        ("main.py/..", "hello"),
    ],
)
def test_a_function_has_a_name_whatever_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
):
    make(tmp_path / "hello", "main.py", "tool.py", "code.v2.zip", "sub/", "함수/", "a\nb/")
    monkeypatch.chdir(tmp_path / "hello")
    assert package.function_id_of(Path(path)) == expected


@pytest.mark.parametrize("name", ["../x", ".", "a/b", "가 나", "x" * 256, "\u0301"])
def test_a_key_is_one_folder_below_functions_whatever_the_name(name: str):
    code = package.Package(name, Runtime.PYTHON, "d" * 64, io.BytesIO(), 0, 0, 0)
    first, folder, last = code.key.split("/")
    assert (first, last) == ("functions", "d" * 64 + ".zip")
    assert folder not in {"", ".", ".."}
    assert len(code.key.encode()) < 1024


# --- refused before anything is uploaded


def test_a_missing_entry_file_is_told_with_what_is_there(tmp_path: Path):
    make(tmp_path, "app.py", "lib/main.py", "index.js")
    said = refusal(tmp_path, Runtime.PYTHON)
    assert "runtime python starts main.py, which is not at its top" in said
    assert "found there: index.js, app.py, lib/" in said
    assert "for index.js use --runtime nodejs" in said


def test_a_folder_without_any_entry_file_is_told_all_of_them(tmp_path: Path):
    said = refusal(make(tmp_path, "app.py", "b"))
    assert all(entry in said for entry in ("main.py (python)", "index.js", "main.cpp", "main.go", "app.py"))


def test_an_entry_file_that_is_left_out_is_told(tmp_path: Path):
    make(tmp_path, "main.py", "a")
    (tmp_path / IGNORE_FILE).write_text("*.py")
    assert f"main.py is left out (ignored by {IGNORE_FILE})" in refusal(tmp_path)


def test_two_entry_files_ask_for_a_choice(tmp_path: Path):
    make(tmp_path, "main.py", "index.js")
    assert "has main.py, index.js; choose one with --runtime" in refusal(tmp_path)
    with packed(tmp_path, Runtime.NODEJS, LIMITS) as code:
        assert code.runtime == "nodejs"


@pytest.mark.parametrize("name", ["absent", "empty", "notes.txt", "code.tar.gz", "pipe", "absent/main.py"])
def test_a_path_without_code_is_named(tmp_path: Path, name: str):
    make(tmp_path, "empty/", "notes.txt", "code.tar.gz")
    os.mkfifo(tmp_path / "pipe")
    assert name.partition("/")[0] in refusal(tmp_path / name)


def make_zip(file: Path, *names: str) -> Path:
    with zipfile.ZipFile(file, "w") as target:
        for name in names:
            target.writestr(name, "x" * 100)
    return file


def test_a_zip_of_windows_is_sent_with_its_single_top_folder(tmp_path: Path):
    file = make_zip(tmp_path / "win.zip", "proj\\main.py", "proj\\lib\\util.py")
    with packed(file, None, LIMITS) as code:
        assert (code.runtime, code.files, code.unpacked_bytes) == (Runtime.PYTHON, 2, 200)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Main.py",), "Rename 'Main.py' to main.py"),
        (("app.js", "Main.PY"), "Rename 'Main.PY' to main.py"),
        (("server.go", "go.mod"), "Rename 'server.go' to main.go"),
        (("a/x.txt", "b/main.py"), "main.py is in the folder 'b': make the zip inside that folder"),
        (("a\\x.txt", "b\\index.js"), "index.js is in the folder 'b': make the zip inside that folder"),
        (("code.zip",), "upload 'code.zip' itself"),
        ((), "The zip is empty"),
        (("a.txt", "b/c"), "main.py (python), index.js (nodejs), main.cpp (cpp), main.go (go); found there"),
        (("main.py", "index.js"), "has main.py, index.js; choose one with --runtime"),
    ],
)
def test_a_zip_without_an_entry_file_gets_the_workers_advice(
    tmp_path: Path, names: tuple[str, ...], said: str
):
    assert said in refusal(make_zip(tmp_path / "code.zip", *names))


def test_a_zip_in_another_language_is_refused_in_the_workers_words(tmp_path: Path):
    said = refusal(make_zip(tmp_path / "code.zip", "index.js"), Runtime.PYTHON)
    assert "the code zip has no main.py in its root folder; found there: 'index.js'" in said
    assert "send the job with runtime nodejs" in said


@pytest.mark.parametrize("name", ["code.zip", "code"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_zip_is_told(tmp_path: Path, name: str, kept: float):
    file = make_zip(tmp_path / name, "main.py")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    assert "Upload a zip file, complete and unchanged" in refusal(file)


def test_a_damaged_zip_is_told(tmp_path: Path):
    file = make_zip(tmp_path / "code.zip", "main.py")
    file.write_bytes(file.read_bytes().replace(b"PK\x01\x02", b"XXXX"))
    assert "is not a zip that can be read" in refusal(file)


def test_the_names_that_are_found_begin_with_sources_and_end_with_dot_files(tmp_path: Path):
    make(tmp_path, *(f".{letter}" for letter in "abcdefgh"), "README.md", "app.ts", "Index.ts", "data/a")
    assert "found there: Index.ts, app.ts, README.md, data/, .a" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../main.py", "/main.py", "main.py/x"])
def test_a_zip_that_the_worker_would_refuse_is_refused_here_with_its_words(tmp_path: Path, name: str):
    file = tmp_path / "code.zip"
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("main.py", "1")
        target.writestr(name, "2")
    assert "the code zip" in refusal(file)


def test_a_language_that_contradicts_the_file_is_told(tmp_path: Path):
    assert "a.py is a file of python" in refusal(make(tmp_path, "a.py") / "a.py", Runtime.GO)


@pytest.mark.parametrize(
    ("size", "setting"),
    [(16_000, "CODE_MAX_FILE_MB"), (14_000, "CODE_MAX_UNPACKED_MB"), (9_900, "CODE_MAX_ZIP_MB")],
)
def test_code_above_the_workers_limits_is_refused(tmp_path: Path, size: int, setting: str):
    make(tmp_path, "main.py")
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(os.urandom(size))
    assert setting in refusal(tmp_path)
    file = tmp_path.parent / f"{tmp_path.name}.zip"
    file.write_bytes(pack(tmp_path))
    assert "CODE_MAX_" in refusal(file)


def test_the_limits_are_those_of_the_settings():
    settings = make_settings(
        code_max_zip_mb=1, code_max_unpacked_mb=2, code_max_file_mb=3, code_max_entries=4
    )
    assert limits_of(settings) == ArchiveLimits(1 << 20, 2 << 20, 3 << 20, 4)


# --- input and message


@pytest.mark.parametrize("text", ['{"a": 1}', "-5", '"text"', "null", "[1.50, 1e400, 123456789012345678901]"])
def test_an_input_is_handed_on_as_it_is_written(text: str):
    assert message.read_input(text).replace(" ", "") == text.replace(" ", "")


def test_an_input_may_have_more_digits_than_python_reads():
    assert message.read_input("9" * 5000) == "9" * 5000


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_an_input_is_read_from_a_file_as_windows_writes_it_too(tmp_path: Path, encoding: str):
    file = tmp_path / "in put.json"
    file.write_bytes('{\r\n  "이름": "값"\r\n}\r\n'.encode(encoding))
    assert json.loads(message.read_input(f"@{file}")) == {"이름": "값"}


def test_an_input_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 2}\n')))
    assert message.read_input("-") == '{"a":2}'


@pytest.mark.parametrize("text", ["{", "hello", "", "NaN", "[Infinity]", "{'a': 1}", "[" * 100_000, "\udcff"])
def test_an_input_that_is_not_json_is_refused(text: str):
    with pytest.raises(InvalidCall, match=r"--input.*is not JSON"):
        message.read_input(text)


def test_a_file_that_was_named_without_its_mark_is_recognised(tmp_path: Path):
    file = make(tmp_path, "input.json") / "input.json"
    with pytest.raises(InvalidCall, match=f"--input @{file}"):
        message.read_input(str(file))


@pytest.mark.parametrize("name", ["absent", "folder", "empty", "x\0y"])
def test_an_input_file_that_cannot_be_used_is_named(tmp_path: Path, name: str):
    make(tmp_path, "folder/")
    make(tmp_path, "empty", content="")
    with pytest.raises(InvalidCall, match=name.partition("\0")[0]):
        message.read_input(f"@{tmp_path / name}")


def test_the_largest_input_fits_and_one_byte_more_is_refused_with_the_room_that_there_is():
    fields = {"requestId": "r1", "functionId": "함수", "s3Key": "k"}
    with pytest.raises(InvalidCall) as refused:
        message.body(fields, f'"{"가" * MAX_MESSAGE_BYTES}"')
    room = int(str(refused.value).split("at most ")[1].split(" ")[0])

    largest = message.body(fields, f'"{"a" * (room - 2)}"')

    assert len(largest.encode()) == MAX_MESSAGE_BYTES
    job = parse_job(largest, JobDefaults(s3_bucket="b", model_id="m", max_memory_mb=1024))
    assert (job.function_id, len(job.payload)) == ("함수", room)
    with pytest.raises(InvalidCall, match=f"has {room + 1} bytes"):
        message.body(fields, f'"{"a" * (room - 1)}"')


def test_characters_that_sqs_refuses_are_escaped():
    assert json.loads(message.body({"a": 1}, '"\uffff\ufffe"'))["input"] == "\uffff\ufffe"
    assert message.body({"a": 1}, '"\uffff"').isascii()


# --- the queue


def test_a_fifo_queue_is_told_what_it_wants_and_another_nothing():
    assert delivery.fifo_fields("https://sqs/1/jobs", "r1") == {}
    fields = delivery.fifo_fields("https://sqs/1/jobs.fifo", "r1")
    assert fields == {"MessageGroupId": "r1", "MessageDeduplicationId": "r1"}


async def test_a_message_that_found_no_queue_may_have_arrived():
    clients = AwsClients("x", "http://127.0.0.1:9", "x", "x", max_attempts=1)
    async with clients:
        with pytest.raises(BrokerError) as failed:
            await delivery.enqueue(clients, "http://127.0.0.1:9/1/jobs", "r1", "{}")
    assert delivery.may_have_arrived(failed.value)
    assert not delivery.may_have_arrived(BrokerError("refused"))


# --- Redis


@asynccontextmanager
async def answering(answers: dict[bytes, bytes]) -> AsyncIterator[int]:
    """A server that answers lines; it is silent to everything else, as Redis is to a TLS handshake."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.read(1024):
            writer.write(answers.get(line, b""))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_tls_to_a_plain_server_names_the_setting_before_the_timeout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(delivery, "_SILENCE_S", 0.1)
    monkeypatch.setattr(delivery, "_REDIS_TIMEOUT_S", 3600)
    async with answering({b"PING\r\n": b"+PONG\r\n"}) as port, asyncio.timeout(60):
        with pytest.raises(ResultStoreError, match="but REDIS_TLS is true: set REDIS_TLS=false"):
            async with delivery.results(
                make_settings(redis_host="127.0.0.1", redis_port=port, redis_tls=True)
            ):
                pass


async def test_a_server_that_is_silent_is_said_to_be_silent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(delivery, "_SILENCE_S", 0.1)
    monkeypatch.setattr(delivery, "_REDIS_TIMEOUT_S", 0.5)
    async with answering({}) as port:
        with pytest.raises(
            ResultStoreError, match=f"Redis at 127.0.0.1:{port}: connect: it did not answer in time"
        ):
            async with delivery.results(make_settings(redis_host="127.0.0.1", redis_port=port)):
                pass


# --- language


@pytest.mark.parametrize(
    ("variables", "locale", "source"),
    [
        ({"LANG": "ko_KR.UTF-8"}, "ko", "LANG=ko_KR.UTF-8"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "ko"}, "ko", "LC_MESSAGES=ko"),
        ({"LANG": "ko_KR", "LC_ALL": "C.UTF-8"}, "en", "LC_ALL=C.UTF-8"),
        ({"LANG": "ko_KR@x", "LC_ALL": ""}, "ko", "LANG=ko_KR@x"),
        ({"LANG": "kok_IN"}, "en", "LANG=kok_IN"),
        ({"LC_CTYPE": "ko_KR.UTF-8"}, "en", "LC_ALL, LC_MESSAGES and LANG are unset"),
    ],
)
def test_the_shells_variables_tell_the_language(variables: dict[str, str], locale: str, source: str):
    assert language.of_shell(variables)[:2] == (locale, source)


# --- the worker of `make dev`


@pytest.fixture
def dev_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SQS_QUEUE_URL", raising=False)
    monkeypatch.setenv("REDIS_HOST", "production")
    return make(tmp_path, ".nanoagent/dev.env", content="REDIS_HOST=local\n") / ".nanoagent/dev.env"


def test_without_settings_the_worker_of_make_dev_is_used_and_said(
    dev_file: Path, capsys: pytest.CaptureFixture[str]
):
    assert dev.settings_file(dev.DEFAULT) == dev_file
    assert os.environ["REDIS_HOST"] == "local"
    assert str(dev_file) in capsys.readouterr().err


def test_a_functions_own_env_file_does_not_hide_the_worker_of_make_dev(dev_file: Path):
    Path(".env").write_text("OPENAI_API_KEY=1\n")
    assert dev.settings_file(dev.DEFAULT) == dev_file


def test_for_machines_it_is_not_said_which_worker_is_used(dev_file: Path, capsys: pytest.CaptureFixture[str]):
    assert dev.settings_file(dev.DEFAULT, quiet=True) == dev_file
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("named", ["file", "option", "variable"])
def test_settings_that_somebody_named_win_over_make_dev(
    dev_file: Path, monkeypatch: pytest.MonkeyPatch, named: str
):
    if named == "file":
        Path(".env").write_text("SQS_QUEUE_URL=http://q\n")
    if named == "variable":
        monkeypatch.setenv("SQS_QUEUE_URL", "http://q")
    file = Path("other.env") if named == "option" else dev.DEFAULT
    assert dev.settings_file(file) == file
    assert os.environ["REDIS_HOST"] == "production"


# --- output


@pytest.mark.parametrize(
    ("env_file", "option"), [(dev.DEFAULT, ""), (Path("prod uction.env"), " --env-file 'prod uction.env'")]
)
def test_the_commands_that_are_proposed_find_the_same_worker(env_file: Path, option: str):
    assert stages.next_commands("r1", env_file).splitlines() == [
        f"  its result:    nanoagent result r1{option}",
        f"  to cancel it:  nanoagent cancel r1{option}",
    ]


def test_a_printed_result_cannot_control_the_terminal_and_keeps_its_value():
    result = {"stdout": "한 \x1b[2J \x9b2J \x7f \u202e \ud800 \U000e0001 \u2028 \n", "exitCode": 0}

    text = command.shown(result)

    assert all(line.isprintable() for line in text.split("\n"))
    assert "한" in text
    assert json.loads(text) == result


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ((), ""),
        (("notes.txt", ".venv/a.py", "__pycache__/b.py", "input.json"), ""),
        (("util.py",), "`nanoagent send {folder}` sends the folder (it needs a main.py)."),
        (("lib/util.py",), "`nanoagent send {folder}` sends the folder (it needs a main.py)."),
        (("main.py",), "`nanoagent send {folder}` sends the folder."),
    ],
)
def test_a_file_that_is_sent_without_those_beside_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], beside: tuple[str, ...], said: str
):
    file = make(tmp_path, "hello.py", *beside) / "hello.py"
    call = command.Call(code=file)
    with packed(file, None, LIMITS) as code:
        command._say_package(command.Report(as_json=False), call, code, command._fields(call, code))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Packed")]
    assert ("Only hello.py is sent" in line) == bool(said)
    assert line.endswith(said.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("result", "is_told"),
    [
        ({"status": "FAILED", "errorMessage": "ModuleNotFoundError: No module named 'util'"}, True),
        ({"status": "FAILED", "stderr": "Error: Cannot find module './util'"}, True),
        ({"status": "FAILED", "stderr": "main.cpp:1: fatal error: util.h: No such file or directory"}, True),
        ({"status": "FAILED", "errorMessage": "KeyError: 'text'"}, False),
        ({"status": "SUCCESS", "stderr": "ModuleNotFoundError"}, False),
    ],
)
def test_a_module_that_was_not_sent_with_its_file_is_told(
    tmp_path: Path,
    result: dict[str, Any],
    is_told: bool,  # noqa: FBT001 - pytest's way
):
    make(tmp_path, "main.py", "util.py")
    tips = command._tips(result, command.Call(code=tmp_path / "main.py"))
    assert tips == ([f"Only main.py is sent; `nanoagent send {tmp_path}` sends the folder."] * is_told)
    assert command._tips(result, command.Call(code=tmp_path)) == []


@pytest.mark.parametrize(
    ("code", "payload", "status", "is_told"),
    [
        (".", "{}", "FAILED", True),
        ("main.py", "{}", "FAILED", True),
        ("code.zip", "{}", "FAILED", False),
        (".", "{}", "SUCCESS", False),
        (".", '{"a": 1}', "FAILED", False),
    ],
)
def test_an_input_file_that_was_not_passed_is_told(
    tmp_path: Path,
    code: str,
    payload: str,
    status: str,
    is_told: bool,  # noqa: FBT001 - pytest's way
):
    make(tmp_path, "main.py", "input.json")
    tips = command._tips({"status": status}, command.Call(code=tmp_path / code, payload=payload))
    assert any(f"--input @{tmp_path}/input.json" in tip for tip in tips) == is_told


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_before_sending_says_that_nothing_was_sent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,  # noqa: FBT001 - pytest's way
):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "packed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.send(make_settings(), command.Call(code=tmp_path, as_json=as_json))
    captured = capsys.readouterr()
    if as_json:
        document = json.loads(captured.out)
        assert (document["stage"], document["error"]) == ("not sent", "interrupted")
    else:
        assert captured.err == "\nNothing was sent.\n"


@pytest.mark.parametrize(
    ("found", "workers", "result_stage", "cancel_stage"),
    [
        (None, 0, "unknown", "unknown"),
        (None, 1, "unknown", "sent"),
        ({"status": "SUCCESS"}, 0, "sent", "sent"),
    ],
)
def test_a_job_of_which_nothing_is_known_is_not_said_to_be_sent(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: dict[str, Any] | None,
    workers: int,
    result_stage: str,
    cancel_stage: str,
):
    class Known:
        async def stored(self, request_id: str) -> dict[str, Any] | None:
            return found

        async def cancel(self, request_id: str) -> int:
            return workers

        async def claimed(self, request_id: str) -> None:
            return None

        async def wait(self, request_id: str, wait_s: float) -> None:
            return None

        async def entries(self, **_: Any) -> list[tuple[str, bytes]]:
            return []

        async def was_sent(self, request_id: str) -> bool:
            return False

        async def time_ms(self) -> int:
            return 0

    @asynccontextmanager
    async def results(settings: Any) -> AsyncIterator[Known]:
        yield Known()

    monkeypatch.setattr(delivery, "results", results)
    result.result(make_settings(), "r1", wait_s=0, as_json=True)
    assert json.loads(capsys.readouterr().out)["stage"] == result_stage
    cancel.cancel(make_settings(), "r1", as_json=True)
    assert json.loads(capsys.readouterr().out)["stage"] == cancel_stage


def as_another_user(call: Any) -> Any:
    """Run it as a user whom modes bind."""
    if os.geteuid() != 0:
        return call()
    os.seteuid(65_534)
    try:
        return call()
    finally:
        os.seteuid(0)


# --- the ignore file of a folder from someone else


@pytest.mark.parametrize(
    "pattern", ["*a" * 12 + "b", "!x/*a*a*a*a*b/y", "**/a/**/a/**/a/**/b"], ids=["part", "inner", "folders"]
)
def test_a_pattern_with_many_wildcards_is_refused_by_line(tmp_path: Path, pattern: str):
    make(tmp_path, "main.py", "a" * 60)
    (tmp_path / IGNORE_FILE).write_text(f"*.csv\n{pattern}\n")
    found = refusal(tmp_path)
    assert f"{IGNORE_FILE}, line 2: '{pattern}': has more than" in found
    assert "use fewer" in found


@pytest.mark.parametrize("pattern", ["*a*a*a*b", "*a*a*a*/*a*a*a*/*a*a*a*/b"])
def test_a_pattern_with_few_wildcards_takes_little_time(pattern: str):
    compiled = ignorefile.compiled([pattern])
    began = time.process_time()
    for path in ("a" * 250, "/".join(["a" * 250] * 3)):
        assert not compiled.match_file(path)
    assert time.process_time() - began < 1  # with backtracking: minutes


@pytest.mark.parametrize(
    ("pattern", "path", "is_matched"),
    [
        ("*a*b*", "xaxbx", True),
        ("*a*b*", "xbxax", False),
        ("a*?c*d", "abcbd", True),
        ("a*?c*d", "acd", False),
        ("*[ab]*[cd]", "xaxd", True),
        ("a**b", "axb", True),
        (r"*\**x", "a*bx", True),
        (r"*\**x", "abx", False),
        ("a*b*/**/c*d*e", "aXbX/y/z/cdde", True),
        ("a*b*/c", "a/b/c", False),
    ],
)
def test_patterns_mean_what_they_mean_to_git(pattern: str, path: str, is_matched: object):
    assert ignorefile.compiled([pattern]).match_file(path) is is_matched


def test_an_ignore_file_that_is_no_regular_file_of_the_folder_is_refused(tmp_path: Path):
    outside = make(tmp_path, "outside", content="*.csv") / "outside"
    for number, (make_it, said) in enumerate(
        {
            os.mkfifo: "is not a regular file",
            os.mkdir: "is not a regular file",
            lambda file: file.symlink_to(outside): "outside the folder",
            lambda file: file.symlink_to("/dev/zero"): "outside the folder",
            lambda file: file.symlink_to("nowhere"): "cannot be read",
            lambda file: file.symlink_to(IGNORE_FILE): "cannot be read",
        }.items()
    ):
        folder = make(tmp_path / str(number), "main.py")
        make_it(folder / IGNORE_FILE)
        assert said in refusal(folder)


def test_an_ignore_file_may_be_a_link_inside_the_folder(tmp_path: Path):
    make(tmp_path, "main.py", "a.csv")
    make(tmp_path, "etc/ignored", content="*.csv")
    (tmp_path / IGNORE_FILE).symlink_to("etc/ignored")
    assert chosen(tmp_path) == ["etc/ignored", "main.py"]


def test_a_large_ignore_file_is_refused(tmp_path: Path):
    make(tmp_path, "main.py")
    (tmp_path / IGNORE_FILE).write_text("#" * 65_537)
    assert "has more than 64 KiB" in refusal(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_an_ignore_file_may_be_utf_16_with_a_mark(tmp_path: Path, encoding: str):
    make(tmp_path, "main.py", "a.csv")
    (tmp_path / IGNORE_FILE).write_bytes("\ufeff*.csv\r\n".encode(encoding))
    assert chosen(tmp_path) == ["main.py"]


@pytest.mark.parametrize("content", ["한국*".encode("cp949"), "*.csv\n".encode("utf-16-le")])
def test_an_ignore_file_in_another_encoding_is_told_the_remedy(tmp_path: Path, content: bytes):
    make(tmp_path, "main.py")
    (tmp_path / IGNORE_FILE).write_bytes(content)
    assert "save it as UTF-8" in refusal(tmp_path)


def test_a_secret_that_the_ignore_file_includes_is_named(tmp_path: Path):
    make(tmp_path, "main.py", ".env", "lib/a.csv")
    make(tmp_path, "deploy_key", content=KEY)
    (tmp_path / IGNORE_FILE).write_text("*.csv\n\n!.env\n!deploy*\n!lib/a.csv\n")
    with packed(tmp_path, None, LIMITS) as code:
        assert code.notices == (
            f"{IGNORE_FILE} includes a file that looks like a secret: !.env (line 3): .env.",
            f"{IGNORE_FILE} includes a file that looks like a secret: !deploy* (line 4): deploy_key.",
        )


# --- secrets

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with secrets, beside a function `function`."""
    make(tmp_path / "function", "main.py")
    home = make(tmp_path / "home", ".aws/credentials", ".aws/.env.example", ".ssh/known_hosts", ".env")
    make(home, ".config/gcloud/token", ".config/other", "shared/.ENV", "shared/a.py")
    make(home, ".ssh/id_ed25519", "shared/plain.txt", content=KEY)
    return home


OUTSIDE_SECRETS = {
    "conf": "../home/.aws",
    "example": "../home/.aws/.env.example",
    "data.txt": "../home/.ssh/id_ed25519",
    "keys": "../home/.ssh",
    "hosts": "../home/.ssh/known_hosts",
    "settings.txt": "../home/.env",
    "token": "../home/.config/gcloud/token",
    "plain": "../home/shared/plain.txt",
    "environment": "/proc/self/environ",
}


@pytest.mark.parametrize("name", OUTSIDE_SECRETS)
def test_a_link_does_not_lead_to_a_secret(home: Path, name: str):
    function = home.parent / "function"
    (function / name).symlink_to(OUTSIDE_SECRETS[name])
    for pattern in ("", "!*\n"):
        (function / IGNORE_FILE).write_text(pattern)
        selected = selection.select(function, max_entries=99, follow_outside_links=True)
        assert {"main.py"} == {entry.path for entry in selected.entries} - {IGNORE_FILE}
        assert [left.reason for left in selected.left_out if name in left.path] == [Reason.SECRET_OUTSIDE]


def test_secrets_below_the_target_of_a_link_stay_here(home: Path):
    function = home.parent / "function"
    (function / "shared").symlink_to("../home/shared")
    (function / "config").symlink_to("../home/.config")
    (function / IGNORE_FILE).write_text("!shared/.ENV\n!gcloud/\n")
    selected = selection.select(function, max_entries=99, follow_outside_links=True)
    assert [entry.path for entry in selected.entries] == ["config/other", "main.py", "shared/a.py"]
    assert [left.path for left in selected.left_out if left.reason is Reason.SECRET_OUTSIDE] == [
        "config/gcloud/",
        "shared/.ENV",
        "shared/plain.txt",
    ]
    targets = [f"{name} -> {home / folder}" for name, folder in (("config", ".config"), ("shared", "shared"))]
    assert selected.notices == (f"Followed 2 links out of the folder: {', '.join(targets)}.",)


def test_a_link_that_leads_out_is_left_out_unless_asked_for(home: Path):
    function = home.parent / "function"
    (function / "shared").symlink_to("../home/shared")
    (function / "a.py").symlink_to(home / "shared/a.py")
    (function / "zero").symlink_to("/dev/zero")
    assert chosen(function) == ["main.py"]
    assert left_out(function) == dict.fromkeys(["a.py", "shared/", "zero"], Reason.OUTSIDE)


def test_the_summary_names_every_link_that_leads_out(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    function = home.parent / "function"
    for number in range(15):
        (function / f"link{number}").symlink_to("../home/shared/a.py")
    (function / "key").symlink_to("../home/.ssh/id_ed25519")

    async def not_delivered(*_: Any) -> int:
        return 0

    monkeypatch.setattr(command, "_deliver", not_delivered)
    command.send(make_settings(), command.Call(code=function))
    told = capsys.readouterr().err
    assert all(f"link{number}" in told for number in range(15))
    assert "Left out 16 (a link that leads out of the folder)" in told
    assert "--follow-outside-links" in told

    command.send(make_settings(), command.Call(code=function, follow_outside_links=True))
    told = capsys.readouterr().err
    assert "Followed 15 links out of the folder" in told
    assert all(f"link{number} -> {home}/shared/a.py" in told for number in range(15))
    assert "Left out 1 (looks like a secret, outside the folder): key." in told


@pytest.mark.parametrize("name", [".ENV", "ID_RSA", "Key.PFX", ".AWS/credentials", "a/.Docker/Config.json"])
def test_case_does_not_hide_a_secret(tmp_path: Path, name: str):
    make(tmp_path, "main.py", name)
    assert chosen(tmp_path) == ["main.py"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deploy_key", KEY.encode()),
        ("KEY.PEM", b"-----BEGIN PRIVATE KEY-----"),
        ("windows.txt", b"\xff\xfe" + KEY.encode("utf-16-le")),
        ("values.yaml", b"key: |\n  -----BEGIN RSA PRIVATE KEY-----\r\n  MIIE\r\n"),
        ("encrypted", b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"),
        ("pgp.asc", b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOYBF\n"),
        ("one_line.py", b'KEY = "-----BEGIN PRIVATE KEY-----\\nMIIE\\n"'),
        ("strings.js", b"'-----BEGIN PRIVATE KEY-----\\n' +\n  '" + b"M" * 64 + b"'"),
        ("late.txt", b"x\n" * 400_000 + KEY.encode()),
        ("large.pem", b"a" * 70_000 + KEY.encode()),
        ("huge.pem", b"a" * (1024 * 1024 - 9) + KEY.encode()),  # the header is in two chunks
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_private_key_stays_here_whatever_its_file_is_called(tmp_path: Path, name: str, content: bytes):
    make(tmp_path, "main.py")
    (tmp_path / name).write_bytes(content)
    assert left_out(tmp_path) == {name: Reason.SECRET}


@pytest.mark.parametrize(
    "content",
    [
        'START = b"-----BEGIN PRIVATE KEY-----"\nEND = b"-----END PRIVATE KEY-----"\n',
        'pem = "-----BEGIN RSA PRIVATE KEY-----\\n" + body + "\\n-----END RSA PRIVATE KEY-----"\n',
        "A file starts with\n-----BEGIN PRIVATE KEY-----\nand ends with another line.\n",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n",
    ],
)
def test_code_that_reads_or_writes_keys_is_sent(tmp_path: Path, content: str):
    assert chosen(make(tmp_path, "keys.py", content=content)) == ["keys.py"]
