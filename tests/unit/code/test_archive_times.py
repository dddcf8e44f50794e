"""Files keep the time that the zip has for them, so that byte code which was shipped is used."""

from __future__ import annotations

import io
import os
import py_compile
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from typing import TYPE_CHECKING, Any, Final

import pytest

from nanoagent.code.archive import ArchiveLimits
from nanoagent.common.units import MIB
from support.checks.packs import extract
from support.checks.zips import RawEntry, extra_field, raw_zip

if TYPE_CHECKING:
    from pathlib import Path

LIMITS: Final = ArchiveLimits(MIB, MIB, MIB, 1000)
S: Final = 1_000_000_000
IN_2024: Final = 1_704_067_201  # an odd second, which a DOS time cannot say
IN_1980: Final = 315_532_800
DOS_2025: Final = (2025 - 1980) << 25 | 1 << 21 | 1 << 16  # 1 January, midnight
IN_2025: Final = 1_735_689_600


def extended(*times: int, flags: int = 1) -> bytes:
    return extra_field(0x5455, bytes([flags]) + b"".join(struct.pack("<i", at) for at in times))


def ntfs(ticks: int) -> bytes:
    return extra_field(10, struct.pack("<IHHQQQ", 0, 1, 24, ticks, 0, 0))


def first_unix(accessed: int, modified: int) -> bytes:
    return extra_field(0x5855, struct.pack("<ii", accessed, modified))


OWNER: Final = extra_field(0x7875, b"\x01\x04\0\0\0\0\x04\0\0\0\0")
TIMES: Final[dict[str, tuple[dict[str, Any], int]]] = {
    "DOS, read as UTC": ({}, IN_2025 * S),
    "extended": ({"extra": extended(IN_2024)}, IN_2024 * S),
    "extended, behind another field": ({"extra": OWNER + extended(IN_2024)}, IN_2024 * S),
    "extended, with flags for the local header's times": ({"extra": extended(IN_2024, flags=7)}, IN_2024 * S),
    "extended, before 1970": ({"extra": extended(-1)}, -S),
    "extended, without a time of modification": ({"extra": extended(IN_2024, flags=2)}, IN_2025 * S),
    "extended, cut short": ({"extra": extra_field(0x5455, b"\x01\0\0")}, IN_2025 * S),
    "extended, empty": ({"extra": extra_field(0x5455, b"")}, IN_2025 * S),
    "in the local header alone": ({"local_extra": extended(IN_2024)}, IN_2025 * S),
    "NTFS": ({"extra": ntfs((IN_2024 + 11_644_473_600) * 10**7 + 5)}, IN_2024 * S + 500),
    "NTFS, not set": ({"extra": ntfs(0)}, IN_2025 * S),
    "NTFS, of all ones": ({"extra": ntfs((1 << 64) - 1)}, IN_2025 * S),
    "Info-ZIP's first Unix field, as macOS writes it": ({"extra": first_unix(5, IN_2024)}, IN_2024 * S),
    "the extended one before the others": (
        {"extra": first_unix(5, 6) + ntfs((7 + 11_644_473_600) * 10**7) + extended(IN_2024)},
        IN_2024 * S,
    ),
    "no date at all": ({"dos_time": 0}, IN_1980 * S),
    "month 15": ({"dos_time": 0xFFFF_FFFF}, IN_1980 * S),
    "month 0": ({"dos_time": (2020 - 1980) << 25}, IN_1980 * S),
}


@pytest.mark.parametrize(("fields", "expected_ns"), TIMES.values(), ids=TIMES)
def test_a_file_keeps_its_time(tmp_path: Path, fields: dict[str, Any], expected_ns: int) -> None:
    (tmp_path / "code.zip").write_bytes(raw_zip(RawEntry(b"main.py", **({"dos_time": DOS_2025} | fields))))

    extract(tmp_path / "code.zip", tmp_path / "tree", LIMITS)

    assert (tmp_path / "tree/main.py").stat().st_mtime_ns == expected_ns


def test_the_workers_time_zone_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code.zip").write_bytes(raw_zip(RawEntry(b"main.py", dos_time=DOS_2025)))
    monkeypatch.setenv("TZ", "Asia/Seoul")
    time.tzset()
    try:
        extract(tmp_path / "code.zip", tmp_path / "tree", LIMITS)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert (tmp_path / "tree/main.py").stat().st_mtime == IN_2025


@pytest.mark.skipif(not shutil.which("zip"), reason="the command zip is not installed here")
def test_byte_code_that_info_zip_packed_is_valid_after_unpacking(tmp_path: Path) -> None:
    """Of each kind: by time, by a hash that is checked, and by one that is not."""
    code = tmp_path / "code"
    code.mkdir()
    modes = py_compile.PycInvalidationMode
    for name, mode in {
        "timed": modes.TIMESTAMP,
        "hashed": modes.CHECKED_HASH,
        "trusted": modes.UNCHECKED_HASH,
    }.items():
        source = code / f"{name}.py"
        source.write_text("WHERE = 'source'\n")
        os.utime(source, (IN_2024, IN_2024))
        py_compile.compile(str(source), invalidation_mode=mode)
    subprocess.run(["zip", "-qr", "../code.zip", "."], cwd=code, check=True)

    extract(tmp_path / "code.zip", tmp_path / "tree", LIMITS)

    program = "import sys, timed, hashed, trusted; print(*sorted(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-v", "-c", program],
        cwd=tmp_path / "tree",
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("timed", "hashed", "trusted"):
        assert f"{name}.cpython" in ended.stderr, "no byte code was looked at"
        assert f"wrote '{name}" not in ended.stderr
        assert "could not create" not in ended.stderr
        assert f"code object from '{tmp_path}/tree/{name}.py'" not in ended.stderr, (
            f"{name} was compiled again"
        )


def test_pythons_own_zips_keep_even_seconds(tmp_path: Path) -> None:
    """They have a DOS time alone, in the author's time zone; UTC is usual where zips are made."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("main.py", (2024, 1, 1, 0, 0, 2)), "1")
    (tmp_path / "code.zip").write_bytes(buffer.getvalue())

    extract(tmp_path / "code.zip", tmp_path / "tree", LIMITS)

    assert (tmp_path / "tree/main.py").stat().st_mtime == IN_2024 + 1
