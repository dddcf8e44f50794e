"""Shortens a result until its JSON fits into MAX_RESULT_BYTES. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from nanoagent.model import result as results
from nanoagent.model.result import Refusal
from nanoagent.model.text import Text
from nanoagent.supervisor import gap

if TYPE_CHECKING:
    from nanoagent.model.result import Result

_MORE_REFUSED: Final = Text(
    "{count} more files that were not uploaded do not fit into the result",
    "업로드되지 않은 파일이 {count}개 더 있으나 결과에 들어가지 않습니다",
)
_MORE_LINKS: Final = Text(
    "{count} links do not fit into the result", "링크 {count}개가 결과에 들어가지 않습니다"
)


def shortened(result: Result, max_bytes: int, locale: str) -> bytes:
    """Return the JSON of a result, cut until it fits: first its text, then the refused files, then the links.

    The text is stdout and stderr. A character takes one to six bytes in JSON, so the right length of the text
    is not computed. The length is halved until the JSON fits.

    Args:
        result: The result.
        max_bytes: The largest size of the JSON, bytes. A result that is larger even without stdout, stderr
            and lists is returned anyway.
        locale: The language of the added texts.
    """
    keep_chars = max_bytes // 4
    while True:
        shorter = msgspec.structs.replace(
            result, **_cut(result, "stdout", keep_chars, locale), **_cut(result, "stderr", keep_chars, locale)
        )
        if len(document := results.encode(shorter)) <= max_bytes:
            return document
        if keep_chars == 0:
            break
        keep_chars //= 2
    return _with_shorter_lists(shorter, max_bytes, locale)


def _with_shorter_lists(result: Result, max_bytes: int, locale: str) -> bytes:
    """Return the JSON, with as much of the two lists as fits. All uploaded files stay in the bucket."""
    links, errors = result.output_files, result.output_errors
    keep_links, keep_errors = len(links), len(errors)
    while True:
        more = [
            Refusal("", text.format(count=count)).in_(locale)
            for count, text in (
                (len(errors) - keep_errors, _MORE_REFUSED),
                (len(links) - keep_links, _MORE_LINKS),
            )
            if count
        ]
        shorter = msgspec.structs.replace(
            result, output_files=links[:keep_links], output_errors=errors[:keep_errors] + more
        )
        document = results.encode(shorter)
        if len(document) <= max_bytes or keep_errors == keep_links == 0:
            return document
        if keep_errors:
            keep_errors //= 2
        else:
            keep_links //= 2


def _cut(result: Result, stream: str, keep_chars: int, locale: str) -> dict[str, str | int]:
    """Return the new values of a stream's two fields: the text, and the number of missing bytes.

    The new text is the head, one line about the gap, and the tail.

    Args:
        result: The result.
        stream: `stdout` or `stderr`.
        keep_chars: How many characters of head and tail to keep together.
        locale: The language of the line about the gap.

    Returns:
        Empty when the stream is short enough.
    """
    text: str = getattr(result, stream)
    if len(text) <= keep_chars:
        return {}
    already_cut: int = getattr(result, f"{stream}_truncated_bytes")
    parts = gap.split(text) if already_cut else None
    before, behind = parts or (text, text)
    head, tail = before[: keep_chars // 2], behind[max(0, len(behind) - keep_chars // 2) :]
    shown_bytes = len(head.encode()) + len(tail.encode())
    whole_bytes = sum(len(part.encode()) for part in parts) if parts else len(text.encode())
    missing = already_cut + whole_bytes - shown_bytes
    return {stream: gap.joined(head, missing, tail).in_(locale), f"{stream}_truncated_bytes": missing}
