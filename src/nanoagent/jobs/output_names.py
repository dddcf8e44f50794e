"""The names and media types of output files. Pure functions. Hostile programs may choose the paths."""

from __future__ import annotations

import mimetypes
import unicodedata
from pathlib import PurePosixPath
from typing import Final

from nanoagent.model.text import Text

RESERVED_FOLDER: Final = ".nanoagent"
"""The folder among a run's outputs in S3 to which only the worker writes."""

_MAX_KEY_BYTES: Final = 1024  # S3: "object key names", UTF-8
# Bidirectional controls make a name look like another: Trojan Source, CVE-2021-42574.
_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# XML cannot contain these, so a bucket with such a key could not be listed. XML 1.0, section 2.2.
_NOT_IN_XML: Final = frozenset("\ufffe\uffff")
# Cc: control characters. Cs: surrogates, which stand for invalid UTF-8. Zl, Zp: line separators.
_REFUSED_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_SHOWN_CHARACTERS: Final = 1024
_BAD_NAME: Final = Text(
    "its name has control characters or is not valid UTF-8",
    "이름에 제어 문자가 있거나 올바른 UTF-8이 아닙니다",
)
_BAD_PATH: Final = Text("its path has an empty part, . or ..", "경로에 빈 부분이나 . 또는 ..이 있습니다")
_RESERVED: Final = Text("{name} is reserved for the worker", "{name}은(는) 워커가 쓰는 이름입니다")
_LONG_KEY: Final = Text(
    "its key would be longer than {longest} bytes", "객체 키가 {longest}바이트보다 길어집니다"
)
_DEFAULT_TYPE: Final = "application/octet-stream"
# Only Python's own table is used, because the host's /etc/mime.types differs from worker to worker.
_TYPES: Final = mimetypes.MimeTypes()
# Types that a browser shows without running code. Other types may be pages with scripts, which would run in
# the origin of the bucket.
_SAFE_TYPES: Final = frozenset({"application/json", "application/pdf", "text/csv", "text/plain"})
_SAFE_KINDS: Final = frozenset({"audio", "font", "image", "video"})
_SCRIPTED_IMAGES: Final = frozenset({"image/svg+xml"})


def content_type_of(path: str) -> str:
    """Return the media type for the suffix of a file; the charset of text is UTF-8.

    `mimetypes.guess_type` is not used: it reads the path as a URL, and `data:text/html,x` would be HTML.
    """
    suffix = PurePosixPath(path).suffix.lower()
    kind = next((known[suffix] for known in reversed(_TYPES.types_map) if suffix in known), _DEFAULT_TYPE)
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def is_safe_to_show(content_type: str) -> bool:
    """Whether a browser may show a file of that media type. Other files must be downloaded."""
    kind = content_type.partition(";")[0]
    if kind in _SCRIPTED_IMAGES:
        return False
    return kind in _SAFE_TYPES or kind.partition("/")[0] in _SAFE_KINDS


def shown_name(path: str) -> str:
    """Return a path for the result: invalid UTF-8 is replaced by U+FFFD, and a long path is cut."""
    return path[:_SHOWN_CHARACTERS].encode(errors="surrogateescape").decode(errors="replace")


def name_problem(path: str, key: str) -> Text | None:
    """Return why an output file cannot be stored under its path, or None.

    Args:
        path: The path below /output, which the program has chosen.
        key: The object key for it.
    """
    if any(
        character in _BIDI
        or character in _NOT_IN_XML
        or unicodedata.category(character) in _REFUSED_CATEGORIES
        for character in path
    ):
        return _BAD_NAME
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        return _BAD_PATH
    if parts[0] == RESERVED_FOLDER:
        return _RESERVED.format(name=RESERVED_FOLDER)
    if len(key.encode()) > _MAX_KEY_BYTES:
        return _LONG_KEY.format(longest=_MAX_KEY_BYTES)
    return None
