"""The output files of a run, in a form that a test can compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanoagent.supervisor import wire

if TYPE_CHECKING:
    from support.sandboxes.containers import Ran

LINK, SPECIAL, COUNT, SIZE, TOTAL, DEPTH, UNREADABLE = (str(wire.REFUSALS[code]) for code in range(1, 8))
NAMED_REFUSALS = 100  # the result's outputErrors name so many; it counts the others


# File names that are possible as keys, and file names that are refused as keys.
NAMES = [
    *(
        "...",
        "..x",
        "x..",
        " ",
        "  x",
        "x ",
        ".hidden",
        "-rf",
        "~",
        "~root",
        "*",
        "$(id)",
        "`id`",
        ";id",
        "|id",
    ),
    *(
        "a&b=c+d",
        "a?b",
        "a#b",
        "%2e%2e",
        "%2e%2e%2fx",
        "%00",
        "%",
        "100%",
        "a%20b",
        "a\\b",
        "C:",
        "CON",
        "nul",
    ),
    *(
        "'",
        '"',
        "<script>",
        "a:b",
        "data:text;html,x",
        "http:x",
        "@",
        "[x]",
        "{x}",
        "^",
        "!",
        ",",
        "=",
        "+",
        "&",
    ),
    *(
        "n" * 255,
        "\N{HANGUL SYLLABLE GA}" * 85,
        "\N{PARTY POPPER}",
        "e\u0301",
        "\xe9",
        "\xa0",
        "a\u200db",
        "\ufb03",
    ),
    *(
        "A",
        "a",
        "\u0130",
        "\u0131",
        "K",
        "\u212a",
        "index.html",
        "x.svg",
        "x.html/...",
        "..../..x/ /%2e%2e/y",
    ),
    *(
        "\N{FULLWIDTH FULL STOP}" * 2,
        "\N{ONE DOT LEADER}" * 2,
        "\u2215etc\u2215passwd",
        "\N{FULLWIDTH SOLIDUS}x",
    ),
]
REFUSED_NAMES = [
    *(
        b"new\nline",
        b"\n",
        b"return\r",
        b"\t",
        b"\x1b[2J\x1b[31m",
        b"\x7f",
        b"\x01",
        b"\xc2\x85",
        b"a\xc2\x9fb",
    ),
    *(b"\xff", b"\xc0\xae\xc0\xae", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"a\x80", b"\xe2\x80"),
    *(
        name.encode()
        for name in ("\u202etxt.exe", "\u2066x\u2069", "\u200fx", "\u061c", "a\u2028b", "a\u2029b", "\uffff")
    ),
]


@dataclass(frozen=True, slots=True)
class Left:
    """The collected files of a run's /output.

    Attributes:
        files: Bytes by path, in the order of their arrival.
        refused: Path and reason of each refused file, in the same order.
    """

    files: dict[str, bytes]
    refused: list[tuple[str, str]]

    def below(self, folder: str) -> Left:
        """Return the part below one folder, with paths relative to it."""
        start = f"{folder}/"
        return Left(
            {path.removeprefix(start): data for path, data in self.files.items() if path.startswith(start)},
            [(path.removeprefix(start), why) for path, why in self.refused if path.startswith(start)],
        )


def left_by(ran: Ran) -> Left:
    """Return the collected files, with the bytes that the worker has stored."""
    collected = ran.execution.collected
    files = {file.path: file.staged.read_bytes() for file in collected.files}
    assert len(files) == len(collected.files), "a path came twice"
    assert [file.size for file in collected.files] == [len(data) for data in files.values()]
    return Left(files, [(refusal.path, str(refusal.reason)) for refusal in collected.refused])


def percent_encoded(path: bytes) -> str:
    """Percent-encode all characters except unreserved ones and slashes (RFC 3986)."""
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/"
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in path)
