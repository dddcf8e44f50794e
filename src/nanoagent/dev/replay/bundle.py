"""A zip with a capsule, its code and its recorded model calls. It may come from anyone.

Nothing is unpacked by its name: the three entries are read under fixed names, up to fixed sizes.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nanoagent.common.units import MIB
from nanoagent.model import capsule as capsules
from nanoagent.model.capsule import InvalidCapsule
from nanoagent.model.errors import InvalidCall, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.model.capsule import Capsule

CAPSULE: Final = "capsule.json"
CODE: Final = "code.zip"
MODEL_CALLS: Final = "ai.jsonl"

MAX_CAPSULE_BYTES: Final = 2 * capsules.MAX_BYTES
MAX_MODEL_CALLS_BYTES: Final = 33 * MIB  # the limit of `ai.recording`, and one line
_CHUNK_BYTES: Final = MIB
_SIGNATURE: Final = b"PK\x03\x04"
_MAX_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class Contents:
    """A capsule and its parts, as files on this machine.

    Attributes:
        capsule: The capsule.
        code: The code zip; None if it is not known.
        model_calls: The recorded model calls; None if there are none.
    """

    capsule: Capsule
    code: Path | None = None
    model_calls: Path | None = None


class _Call(msgspec.Struct):
    """One line of the recorded model calls, as `ai.replay` reads it."""

    path: str
    model: str
    request: msgspec.Raw
    status: int = 0
    contentType: str = ""  # noqa: N815 - the name in the record
    answer: str | None = None
    answerBase64: str | None = None  # noqa: N815
    complete: bool = False


def is_bundle(path: Path) -> bool:
    """Return whether a file is a zip, by its first bytes.

    Raises:
        InvalidCall: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_SIGNATURE)) == _SIGNATURE
    except OSError as exc:
        raise InvalidCall([f"{path}: {exc.strerror or exc}"]) from exc


def read(path: Path, into: Path, max_code_bytes: int) -> Contents:
    """Read a zip that `write` has made.

    Args:
        path: The zip.
        into: The folder for the code and the model calls.
        max_code_bytes: The largest code zip.

    Raises:
        InvalidCapsule: The zip is not such a file, or its code is not that of the capsule.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            names = _names(bundle)
            capsule = capsules.decode(_read(bundle, CAPSULE, MAX_CAPSULE_BYTES))
            code, model_calls = into / CODE, into / MODEL_CALLS
            if CODE in names:
                _copy(bundle, CODE, code, max_code_bytes)
                _check_code(capsule, code)
            if MODEL_CALLS in names:
                _copy(bundle, MODEL_CALLS, model_calls, MAX_MODEL_CALLS_BYTES)
                check_model_calls(model_calls)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError, OSError) as exc:
        # RuntimeError: an encrypted entry. OSError and ValueError: offsets outside the file.
        raise InvalidCapsule(f"the zip cannot be read: {one_line(str(exc))[:_MAX_SHOWN]}") from exc
    except Exception as exc:  # zlib.error and lzma.LZMAError have no common base class
        if isinstance(exc, InvalidCapsule):
            raise
        raise InvalidCapsule(f"the zip is damaged: {one_line(str(exc))[:_MAX_SHOWN]}") from exc
    return Contents(capsule, code if CODE in names else None, model_calls if MODEL_CALLS in names else None)


def _names(bundle: zipfile.ZipFile) -> set[str]:
    """Return the names of the entries.

    Raises:
        InvalidCapsule: The zip has other entries, or an entry twice.
    """
    names = [info.filename for info in bundle.infolist()]
    for name in names:
        if name not in {CAPSULE, CODE, MODEL_CALLS}:
            shown = one_line(name[:_MAX_SHOWN])
            raise InvalidCapsule(f"the zip has the entry {shown}; a capsule has {CAPSULE} and {CODE} only")
    if len(set(names)) != len(names):
        raise InvalidCapsule("the zip has an entry twice")
    if CAPSULE not in names:
        raise InvalidCapsule(f"the zip has no {CAPSULE}")
    return set(names)


def _read(bundle: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """Return an entry. Its size in the zip is not trusted."""
    with bundle.open(name) as entry:
        data = entry.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise InvalidCapsule(f"{name} in the zip is larger than {max_bytes:,} bytes")
    return data


def _copy(bundle: zipfile.ZipFile, name: str, target: Path, max_bytes: int) -> None:
    with bundle.open(name) as entry, target.open("wb") as file:
        left = max_bytes
        while data := entry.read(_CHUNK_BYTES):
            left -= len(data)
            if left < 0:
                raise InvalidCapsule(f"{name} in the zip is larger than {max_bytes:,} bytes")
            file.write(data)


def _check_code(capsule: Capsule, code: Path) -> None:
    """Refuse code that is not the recorded one. Code without a recorded digest cannot be compared."""
    recorded = capsule.code.digest if capsule.code else None
    if recorded is not None and digest_of(code) != recorded:
        raise InvalidCapsule(f"{CODE} in the zip is not the code of the capsule: its SHA-256 differs")


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_model_calls(path: Path) -> None:
    """Check the recorded model calls, line by line.

    Raises:
        InvalidCapsule: A line is not a recorded call.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                call = msgspec.json.decode(line, type=_Call)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
                problem = one_line(str(exc))[:_MAX_SHOWN]
                raise InvalidCapsule(f"{MODEL_CALLS}, line {number}: not a model call: {problem}") from exc
            if call.status and call.answer is None and call.answerBase64 is None:
                raise InvalidCapsule(f"{MODEL_CALLS}, line {number}: not a model call: it has no answer")


def write(path: Path, contents: Contents) -> None:
    """Write a capsule and its parts to one zip. The file is complete, or it does not exist.

    Raises:
        InvalidCall: The file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(draft, "w") as bundle:
            document = msgspec.json.format(capsules.encode(contents.capsule), indent=2)
            bundle.writestr(CAPSULE, document, zipfile.ZIP_DEFLATED)
            if contents.code is not None:
                bundle.write(contents.code, CODE)
            if contents.model_calls is not None:
                bundle.write(contents.model_calls, MODEL_CALLS, zipfile.ZIP_DEFLATED)
        draft.replace(path)
    except OSError as exc:
        raise InvalidCall([f"--save {path}: {exc.strerror or exc}"]) from exc
    finally:
        draft.unlink(missing_ok=True)
