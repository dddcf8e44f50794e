"""Packs code into one zip, with a digest of its contents.

The digest of a folder or a source file covers paths, contents, links and executable bits. It does not cover
file times. So a new checkout of the same code has the same digest, and uses the same hot containers. The zip
has the file times, because precompiled byte code is valid only with the time of its source. If the code is
already a zip, the digest covers all bytes of the zip, also the file times.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import struct
import tempfile
import time
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, cast

from nanoagent.code import archive, entry_file
from nanoagent.code.archive import ArchiveLimits
from nanoagent.code.entry_file import is_leftover
from nanoagent.common.units import MIB
from nanoagent.dev.sender import selection
from nanoagent.dev.sender.selection import Entry, LeftOut, Reason, Selection
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.errors import InvalidCall, Rejected, one_line
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from nanoagent.code.archive import TreeInfo
    from nanoagent.code.zip_tree import Tree
    from nanoagent.config import Settings

_CHUNK_BYTES: Final = MIB
_SHOWN_NAMES: Final = 8
_MOST_PATHS: Final = 100  # examined in one folder, to find other sources
_ZIP_SIGNATURE: Final = b"PK\x03\x04"  # of the first local header, APPNOTE.TXT 4.3.7
_DOS_YEARS: Final = (1980, 2107)  # APPNOTE.TXT, 4.4.6
_TIMESTAMP: Final = struct.Struct("<HHBl")  # Info-ZIP's extended timestamp: id, size, flags, seconds
_UNKNOWN_FUNCTION: Final = "unknown"  # the default of the message's field
_FUNCTION_ID_CHARACTERS: Final = 256

_SOURCE_FILES: Final = {
    ".py": Runtime.PYTHON,
    ".js": Runtime.NODEJS,
    ".cjs": Runtime.NODEJS,
    ".cpp": Runtime.CPP,
    ".cc": Runtime.CPP,
    ".cxx": Runtime.CPP,
    ".go": Runtime.GO,
}
_NO_LIMITS: Final = ArchiveLimits(
    zip_bytes=1 << 40, unpacked_bytes=1 << 40, file_bytes=1 << 40, entries=1 << 40
)


def limits_of(settings: Settings) -> ArchiveLimits:
    """Return the limits in the sender's settings. The worker checks the code again, with its own limits."""
    return ArchiveLimits(
        zip_bytes=settings.code_max_zip_mb * MIB,
        unpacked_bytes=settings.code_max_unpacked_mb * MIB,
        file_bytes=settings.code_max_file_mb * MIB,
        entries=settings.code_max_entries,
    )


@dataclass(frozen=True, slots=True)
class Package:
    """Code that is ready for the upload.

    Attributes:
        function_id: The function ID, from the path of the code.
        runtime: The language.
        digest: The SHA-256 of the contents, or of all bytes if the code is a zip; hexadecimal.
        zip: The zip, open for reading.
        zip_bytes: The size of the zip.
        files: The number of files in it.
        unpacked_bytes: The total size of the files.
        left_out: The paths that were not packed.
        notices: Sentences about packed paths that the sender may not expect.
    """

    function_id: str
    runtime: Runtime
    digest: str
    zip: IO[bytes]
    zip_bytes: int
    files: int
    unpacked_bytes: int
    left_out: tuple[LeftOut, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The object key: a readable name, and the digest, which makes the key unique."""
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.function_id)
        return f"functions/{name.lstrip('.')[:100] or _UNKNOWN_FUNCTION}/{self.digest}.zip"

    def as_json(self) -> dict[str, Any]:
        """Return the field `code` of the documents that commands print with `--json`."""
        return {
            "digest": self.digest,
            "files": self.files,
            "bytes": self.unpacked_bytes,
            "zipBytes": self.zip_bytes,
            "leftOut": [asdict(left) for left in self.left_out],
            "notices": list(self.notices),
        }


def pack(code: Path) -> bytes:
    """Return a zip of a folder's files, or the bytes of a zip. Size and language are not checked.

    Raises:
        InvalidCall: The path does not exist, or has no files to send.
    """
    if not code.is_dir():
        _require(code)
        return code.read_bytes()
    buffer = io.BytesIO()
    _write_zip(buffer, _chosen(code, _NO_LIMITS).entries)
    return buffer.getvalue()


@contextmanager
def packed(
    code: Path, runtime: Runtime | None, limits: ArchiveLimits, *, follow_outside_links: bool = False
) -> Iterator[Package]:
    """Pack a folder, a source file or a zip, with the same checks as in the worker.

    Args:
        code: The path of the code.
        runtime: The language; None to find it by the entry file.
        limits: The limits on code.
        follow_outside_links: Whether links to targets outside the folder are replaced with the contents of
            their targets.

    Raises:
        InvalidCall: The code cannot be sent. The message names all problems.
    """
    _require(code)
    with tempfile.TemporaryFile() as buffer:
        try:
            if not code.is_dir() and _is_meant_as_zip(code):
                package = _of_zip(code, runtime, limits, buffer)
            else:
                selected = None
                if code.is_dir():
                    selected = _chosen(code, limits, follow_outside_links=follow_outside_links)
                package = _of_files(code, runtime, limits, selected, buffer)
        except OSError as exc:
            raise InvalidCall([f"{_shown(code)}: cannot be packed: {exc}"]) from exc
        buffer.seek(0)
        yield package


def function_id_of(code: Path) -> str:
    """Return the function ID for a path of code. For `send .` it is the name of the folder."""
    path = code.resolve()
    is_entry = path.is_file() and path.name in {recipe.entry for recipe in RECIPES.values()}
    name = path.parent.name if is_entry else path.name if path.is_dir() else path.stem
    printable = "".join(character for character in name if character.isprintable())
    return printable.strip()[:_FUNCTION_ID_CHARACTERS] or _UNKNOWN_FUNCTION


def is_folder_or_source(code: Path) -> bool:
    """Return whether the path is a folder or a source file, not a zip."""
    return code.is_dir() or code.suffix.lower() in _SOURCE_FILES


def entry_of(source: Path) -> str:
    """Return the name of the entry file in the language of a source file."""
    return RECIPES[_SOURCE_FILES[source.suffix.lower()]].entry


def has_other_sources(code: Path) -> bool:
    """Return whether the folder of a source file, or a folder in it, has other sources. They are not sent."""
    if code.is_dir() or code.suffix.lower() not in _SOURCE_FILES:
        return False
    siblings = [
        path
        for path in islice(_paths_in(code.parent), _MOST_PATHS)
        if path.name != code.name and not path.name.startswith((".", "_"))  # of tools and caches
    ]
    inside = [path for folder in siblings for path in islice(_paths_in(folder), _MOST_PATHS)]
    return any(path.suffix.lower() in _SOURCE_FILES for path in (*siblings, *inside))


def _paths_in(folder: Path) -> Iterator[Path]:
    """Yield the paths in a folder; none for a file, or for a folder that cannot be read."""
    with suppress(OSError):
        yield from folder.iterdir()


# --- the three kinds of code


def _require(code: Path) -> None:
    """Refuse a path that is not an existing file or folder."""
    try:
        mode = code.stat().st_mode
    except OSError as exc:
        raise InvalidCall([f"{_shown(code)}: {exc.strerror or exc}; name a folder, a file or a zip"]) from exc
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise InvalidCall([f"{_shown(code)}: is a device, pipe or socket; name a folder, a file or a zip"])


def _of_files(
    code: Path, runtime: Runtime | None, limits: ArchiveLimits, selected: Selection | None, buffer: IO[bytes]
) -> Package:
    """Pack the selected files of a folder; without a selection, pack one source file."""
    if selected is not None:
        runtime = _runtime(code, [entry.path for entry in selected.entries], runtime, selected.left_out)
    else:
        runtime = _runtime_of_file(code, runtime)
        selected = Selection((selection.file_entry(code, RECIPES[runtime].entry),), ())
    _check_files(((entry.path, entry.size) for entry in selected.entries), limits)
    digest = _write_zip(buffer, selected.entries)
    _check_as_worker(code, buffer, limits)
    files = [entry for entry in selected.entries if entry.source is not None]
    return Package(
        function_id=function_id_of(code),
        runtime=runtime,
        digest=digest,
        zip=buffer,
        zip_bytes=buffer.seek(0, os.SEEK_END),
        files=len(files),
        unpacked_bytes=sum(entry.size for entry in files),
        left_out=selected.left_out,
        notices=selected.notices,
    )


def _of_zip(code: Path, runtime: Runtime | None, limits: ArchiveLimits, buffer: IO[bytes]) -> Package:
    with code.open("rb") as file:
        shutil.copyfileobj(file, buffer, _CHUNK_BYTES)
    buffer.seek(0)
    digest = hashlib.file_digest(buffer, "sha256").hexdigest()  # type: ignore[arg-type]
    info, tree = _check_as_worker(code, buffer, limits)
    return Package(
        function_id=function_id_of(code),
        runtime=_runtime_of_zip(code, tree, runtime),
        digest=digest,
        zip=buffer,
        zip_bytes=buffer.seek(0, os.SEEK_END),
        files=info.files,
        unpacked_bytes=info.bytes,
    )


def _is_meant_as_zip(code: Path) -> bool:
    """Return whether a file is a zip, perhaps a cut or damaged one."""
    if code.suffix.lower() == ".zip" or zipfile.is_zipfile(code):
        return True
    with code.open("rb") as file:
        return file.read(len(_ZIP_SIGNATURE)) == _ZIP_SIGNATURE


def _chosen(code: Path, limits: ArchiveLimits, *, follow_outside_links: bool = False) -> Selection:
    selected = selection.select(code, max_entries=limits.entries, follow_outside_links=follow_outside_links)
    if not any(entry.source or entry.link for entry in selected.entries):
        rest = f"; {len(selected.left_out)} paths were left out" if selected.left_out else ""
        raise InvalidCall([f"{_shown(code)}: has no files to send{rest}"])
    return selected


# --- the language


def _runtime_of_file(code: Path, runtime: Runtime | None) -> Runtime:
    found = _SOURCE_FILES.get(code.suffix.lower())
    if found is None:
        kinds = ", ".join(_SOURCE_FILES)
        raise InvalidCall([f"{_shown(code)}: is neither a folder, nor a zip, nor a source file ({kinds})"])
    if runtime not in (None, found):
        raise InvalidCall([f"--runtime {runtime}: {_shown(code)} is a file of {found}"])
    return found


def _runtime(
    code: Path, paths: Iterable[str], runtime: Runtime | None, left_out: Iterable[LeftOut]
) -> Runtime:
    """Return the language whose entry file is in a folder.

    Raises:
        InvalidCall: The folder has no entry file, or entry files of several languages.
    """
    top = _top_names(paths)
    found = [known for known, recipe in RECIPES.items() if recipe.entry in top]
    if (chosen := _choice(code, found, runtime)) is not None:
        return chosen
    if runtime is None:
        raise InvalidCall([f"{_no_entry(code)}; {_seen(top, left_out)}"])
    entry = RECIPES[runtime].entry
    rest = "".join(f"; for {RECIPES[known].entry} use --runtime {known}" for known in found)
    problem = f"{_shown(code)}: runtime {runtime} starts {entry}, which is not at its top"
    raise InvalidCall([f"{problem}; {_seen(top, left_out)}{rest}"])


def _runtime_of_zip(code: Path, tree: Tree, runtime: Runtime | None) -> Runtime:
    """Return the language whose entry file is in a zip, at a place where the worker finds it.

    Raises:
        InvalidCall: The zip has no entry file, or entry files of several languages.
    """
    found = [known for known, recipe in RECIPES.items() if tree.has_entry(recipe.entry)]
    if (chosen := _choice(code, found, runtime)) is not None:
        return chosen
    top = (
        entry_file.likely_language([tree.top_folder(known) for known in Runtime])
        if runtime is None
        else tree.top_folder(runtime)
    )
    if top is None:
        raise InvalidCall([f"{_no_entry(code)}; {_seen(tree.top_folder(Runtime.PYTHON).names, ())}"])
    raise _refused(code, entry_file.missing_entry_in(top))


def _choice(code: Path, found: Sequence[Runtime], runtime: Runtime | None) -> Runtime | None:
    """Return the language if the entry files determine it; None if no entry file fits.

    Raises:
        InvalidCall: Entry files of several languages exist.
    """
    if runtime in found or (runtime is None and len(found) == 1):
        return runtime or found[0]
    if runtime is None and found:
        names = ", ".join(RECIPES[known].entry for known in found)
        raise InvalidCall([f"{_shown(code)}: has {names}; choose one with --runtime"])
    return None


def _no_entry(code: Path) -> str:
    entries = ", ".join(f"{recipe.entry} ({known})" for known, recipe in RECIPES.items())
    return f"{_shown(code)}: has no entry file at its top: {entries}"


def _top_names(paths: Iterable[str]) -> list[str]:
    """Return the names at the root, or in a single top folder: the places of the entry file."""
    split = [tuple(path.removeprefix("./").split("/")) for path in paths]
    counted = [parts for parts in split if not is_leftover(parts[0])]
    top = {parts[0] for parts in counted}
    if len(top) == 1 and all(len(parts) > 1 for parts in counted):
        counted = [parts[1:] for parts in counted]
    return sorted({parts[0] + "/" * (len(parts) > 1) for parts in counted if parts[0]})


def _seen(top: Sequence[str], left_out: Iterable[LeftOut]) -> str:
    shown = [
        *sorted(top, key=entry_file.source_rank)[:_SHOWN_NAMES],
        *(["…"] if len(top) > _SHOWN_NAMES else []),
    ]
    entries = {recipe.entry for recipe in RECIPES.values()}
    lost = [f"{left.path} is left out ({left.reason})" for left in left_out if left.path in entries]
    return "; ".join([f"found there: {one_line(', '.join(shown))}", *lost])


# --- limits


def _check_files(sizes: Iterable[tuple[str, int]], limits: ArchiveLimits) -> None:
    """Refuse files that are too large, before their compression."""
    total, large = 0, []
    for path, size in sizes:
        total += size
        if size > limits.file_bytes:
            large.append(
                f"{one_line(path)}: has {shown_size(size)}; the limit is {shown_size(limits.file_bytes)} "
                "(CODE_MAX_FILE_MB)"
            )
    if total > limits.unpacked_bytes:
        large.append(
            f"the files have {shown_size(total)} together; the limit is {shown_size(limits.unpacked_bytes)} "
            "(CODE_MAX_UNPACKED_MB)"
        )
    if large:
        raise InvalidCall(large)


def _check_as_worker(code: Path, zip_: IO[bytes], limits: ArchiveLimits) -> tuple[TreeInfo, Tree]:
    """Refuse a zip that a worker with these limits would refuse. Return its unpacked size and its tree."""
    try:
        return archive.check(cast("BinaryIO", zip_), limits)
    except Rejected as exc:
        raise _refused(code, exc) from exc


def _refused(code: Path, rejected: Rejected) -> InvalidCall:
    """Return the error of the worker as an error of this command."""
    advice = "" if rejected.hint is None else f". {rejected.hint}"
    return InvalidCall([f"{_shown(code)}: {rejected.message}{advice}"])


def shown_size(size: int) -> str:
    """Return a size with a unit, such as "1.5 MiB"."""
    if size < 1024:
        return f"{size} byte{'s' * (size != 1)}"
    return f"{size / 1024:.1f} KiB" if size < MIB else f"{size / MIB:.1f} MiB"


def _shown(code: Path) -> str:
    return one_line(str(code))


# --- the zip


def _write_zip(into: IO[bytes], entries: Iterable[Entry]) -> str:
    """Write the zip, and return the digest of its contents.

    The digest is computed from the written bytes. So it is right even if a file changes meanwhile.
    """
    digest = hashlib.sha256()
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in entries:
            content = _write_entry(target, entry)
            record = (entry.path, entry.link, entry.is_executable, content)
            digest.update(json.dumps(record).encode() + b"\n")
    return digest.hexdigest()


def _write_entry(into: zipfile.ZipFile, entry: Entry) -> str:
    """Write one entry, and return the digest of its contents; empty for folders and links."""
    info = _info(entry)
    if entry.source is None:
        into.writestr(info, entry.link)
        return ""
    content = hashlib.sha256()
    with entry.source.open("rb") as source, into.open(info, "w") as target:
        while chunk := source.read(_CHUNK_BYTES):
            content.update(chunk)
            target.write(chunk)
    return content.hexdigest()


def _info(entry: Entry) -> zipfile.ZipInfo:
    moment = time.gmtime(max(0, entry.mtime_s))[:6]
    first, last = _DOS_YEARS
    info = zipfile.ZipInfo(entry.path, moment if first <= moment[0] <= last else (first, 1, 1, 0, 0, 0))
    info.create_system = 3  # Unix, also on Windows
    info.compress_type = zipfile.ZIP_DEFLATED if entry.source is not None else zipfile.ZIP_STORED
    info.file_size = entry.size
    info.external_attr = _mode(entry) << 16
    if -(2**31) <= entry.mtime_s < 2**31:
        # The standard time field has a resolution of two seconds and no time zone.
        info.extra = _TIMESTAMP.pack(0x5455, 5, 1, entry.mtime_s)
    return info


def _mode(entry: Entry) -> int:
    """Return the mode in the zip. Of a file's own mode, only the owner's executable bit has an effect."""
    if entry.link:
        return stat.S_IFLNK | 0o777
    if entry.source is None:
        return stat.S_IFDIR | 0o755
    return stat.S_IFREG | (0o755 if entry.is_executable else 0o644)


def by_reason(left_out: Iterable[LeftOut]) -> dict[Reason, list[str]]:
    """Group the paths that were left out by their reasons."""
    paths: dict[Reason, list[str]] = {}
    for left in left_out:
        paths.setdefault(left.reason, []).append(left.path)
    return paths
