"""Hints about an `s3Key` or `s3Bucket` in the format of another tool. Pure functions.

The names are hostile, and the functions run on the event loop. Therefore each step takes at most linear time,
and long names are not examined.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, unquote_plus, urlsplit

from nanoagent.model.errors import one_line
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

_SHOWN_CHARACTERS: Final = 200
# A key of S3 has up to 1,024 bytes, a bucket up to 63. An address also has a host, and often a query.
_MAX_CHARACTERS: Final = 2048
_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_URI: Final = re.compile(r"s3[an]?://([^/]*)/*(.*)", re.IGNORECASE | re.DOTALL)
_URL: Final = re.compile(r"https?://", re.IGNORECASE)
_ARN: Final = re.compile(r"arn:aws[\w-]*:s3:::([^/]+)(?:/(.*))?", re.DOTALL)
_HOST_ENDINGS: Final = (".amazonaws.com", ".amazonaws.com.cn")
_ADDRESS_HINT: Final = Text(
    's3Key is an address; set s3Bucket to "{bucket}" and s3Key to "{key}".',
    's3Key에 주소가 들어 있습니다. s3Bucket을 "{bucket}", s3Key를 "{key}"(으)로 지정하세요.',
)
_ENCODED_HINT: Final = Text(
    's3Key looks URL-encoded; S3 needs the plain key. Try "{key}".',
    's3Key가 URL 인코딩된 것 같습니다. S3에는 원래 키를 지정해야 합니다. "{key}"(을)를 시도하세요.',
)
_PLUS_HINT: Final = Text(
    's3Key has "+"; in S3 events and URLs it stands for a space. Try "{key}" if the object is named so.',
    's3Key에 "+"가 있습니다. S3 이벤트와 URL에서는 공백을 뜻합니다. "{key}"(을)를 시도하세요.',
)
_SLASH_HINT: Final = Text(
    's3Key begins with "/", which S3 takes as a part of the key. Try "{key}".',
    's3Key가 "/"로 시작합니다. S3에서는 "/"도 키의 일부입니다. "{key}"(을)를 시도하세요.',
)
_WHITE_SPACE_HINT: Final = Text(
    's3Key has white space at its end or beginning. Try "{key}".',
    's3Key의 처음이나 끝에 공백 문자가 있습니다. "{key}"(을)를 시도하세요.',
)
_PATH_HINT: Final = Text(
    's3Key has "\\", "./" or "//", which S3 takes as they are. Try "{key}".',
    's3Key에 "\\", "./" 또는 "//"가 있습니다. S3는 이를 그대로 키로 취급합니다. "{key}"(을)를 시도하세요.',
)
_BUCKET_HINT: Final = Text(
    's3Key begins with the name of the bucket. Try "{key}".',
    's3Key가 버킷 이름으로 시작합니다. "{key}"(을)를 시도하세요.',
)
_BUCKET_ADDRESS_HINT: Final = Text(
    's3Bucket must be the name of the bucket only. Set it to "{bucket}".',
    's3Bucket에는 이름만 지정합니다. "{bucket}"(으)로 지정하세요.',
)
_BUCKET_PATH_HINT: Final = Text(
    's3Bucket must be the name of the bucket only. Set it to "{bucket}", and begin s3Key with "{key}".',
    's3Bucket에는 이름만 지정합니다. s3Bucket을 "{bucket}"(으)로 지정하고 s3Key를 "{key}"(으)로 시작하세요.',
)


def key_hint(bucket: str, key: str) -> Text | None:
    """Return a hint with the likely correction of a key that S3 does not have, or None."""
    if len(key) > _MAX_CHARACTERS:
        return None
    if (place := _place(key)) is not None and all(place):
        return _ADDRESS_HINT.format(bucket=_shown(place[0]), key=_shown(place[1]))
    for text, corrected in (
        (_WHITE_SPACE_HINT, str.strip),
        (_ENCODED_HINT, _decoded),
        (_SLASH_HINT, lambda key: key.lstrip("/")),
        (_PATH_HINT, _plain_path),
        (_BUCKET_HINT, lambda key: key.removeprefix(f"{bucket}/")),
        (_PLUS_HINT, lambda key: key.replace("+", " ")),
    ):
        better = corrected(key)
        if better and better != key:
            return text.format(key=_shown(_all_corrected(bucket, better)))
    return None


def bucket_hint(bucket: str) -> Text | None:
    """Return a hint with the likely correction of an invalid bucket name, or None."""
    if len(bucket) > _MAX_CHARACTERS:
        return None
    place = _place(bucket) or (tuple(bucket.strip("/").partition("/")[::2]) if "/" in bucket else None)
    if place is None or not place[0]:
        return None
    name, path = _shown(place[0]), _shown(place[1].strip("/"))
    if not path:
        return _BUCKET_ADDRESS_HINT.format(bucket=name)
    return _BUCKET_PATH_HINT.format(bucket=name, key=f"{path}/")


def _place(text: str) -> tuple[str, str] | None:
    """Return the bucket and the key of an address or ARN; None if the text is neither."""
    if (arn := _ARN.fullmatch(text.strip())) is not None:
        return arn[1], arn[2] or ""
    if (uri := _URI.fullmatch(text.strip())) is not None:
        return uri[1], uri[2]
    return _place_of_url(text.strip()) if _URL.match(text.strip()) else None


def _place_of_url(url: str) -> tuple[str, str] | None:
    """Return the bucket and the key of an S3 URL, path-style or virtual-hosted; None for another URL."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return None
    named = _bucket_of_host(host)
    if named is None:
        return None
    path = parts.path.lstrip("/")
    if not named:
        bucket, _, key = path.partition("/")
        return bucket, unquote(key)
    return named, unquote(path)


def _bucket_of_host(host: str) -> str | None:
    """Return the bucket in a host name of S3; empty for a path-style host, None for another host.

    The labels before the first label `s3` or `s3-…` are the bucket. The name of a bucket may have dots.
    """
    # A regular expression would take quadratic time for a name with many dots.
    ending = next((ending for ending in _HOST_ENDINGS if host.endswith(ending)), None)
    if ending is None:
        return None
    labels = host.removesuffix(ending).split(".")
    for at, label in enumerate(labels):
        if label == "s3" or label.startswith("s3-"):
            return ".".join(labels[:at]) if all(labels) else None
    return None


def _decoded(key: str) -> str:
    """Return the key without URL encoding. S3 events and URLs encode a space as + or %20."""
    return unquote_plus(key, errors="replace") if _ESCAPE.search(key) else key


def _plain_path(key: str) -> str:
    parts = key.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in {"", "."})


def _all_corrected(bucket: str, key: str) -> str:
    """Return the key with all its mistakes corrected.

    A + is replaced only if the key is URL-encoded. In other keys it may be intended.
    """
    corrections: tuple[Callable[[str], str], ...] = (str.strip, _decoded, _plain_path)
    for corrected in corrections:
        key = corrected(key) or key
    return key.removeprefix(f"{bucket}/")


def _shown(text: str) -> str:
    return one_line(text[:_SHOWN_CHARACTERS])
