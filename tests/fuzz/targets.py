"""What is fuzzed: functions of bytes that raise when something is wrong, with inputs to begin from.

The oracles are those of the property tests (`archives`, `messages` and `conversations` of `support.checks`).
They check that nothing crashes, and that each input has the right result. Start at `TARGETS`, at the end.
"""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.container.execution import Execution
from support.checks import archives, conversations, messages
from support.checks.raw_archives import archive_of
from support.checks.raw_messages import message_of
from support.checks.zips import End, RawEntry, deflated, descriptor, extra_field, make_zip, raw_zip
from support.doubles import fake_supervisor as says

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_SEED: Final = 20_261
_BUILT: Final = b"\0"
_RAW: Final = b"\xff"
_PIECE_BYTES: Final = 99


@dataclass
class Target:
    """Something that reads untrusted bytes.

    Attributes:
        name: For the command line.
        seeds: Makes inputs to begin from.
        attempt: Tries an input in a folder that is its own; says in a word what became of it.
        longest: Bytes of an input.
    """

    name: str
    seeds: Callable[[], Iterator[bytes]]
    attempt: Callable[[bytes, Path], str]
    longest: int
    outcomes: Counter[str] = field(default_factory=Counter)

    def run(self, data: bytes, folder: Path) -> None:
        """Try an input, and count what became of it.

        Args:
            data: The input.
            folder: Made for it, and gone after it.

        Raises:
            Exception: Something is wrong.
        """
        folder.mkdir()
        try:
            self.outcomes[self.attempt(data, folder)] += 1
        finally:
            shutil.rmtree(folder)


def _random_inputs(count: int) -> Iterator[bytes]:
    source = random.Random(_SEED)  # noqa: S311 - the same ones each time
    for _ in range(count):
        yield source.randbytes(source.randrange(300))


# The first byte says how the rest is meant: as decisions about a made one, or as what is read itself.


def _is_built(data: bytes) -> bool:
    return data[:1] < b"\x80"


def _archive(data: bytes, folder: Path) -> str:
    content = archive_of(data[1:]) if _is_built(data) else data[1:]
    return "refused" if archives.tried(folder, content) is None else "taken"


def _archives() -> Iterator[bytes]:
    yield from (_BUILT + data for data in _random_inputs(30))
    stored, packed = RawEntry(b"main.py", b"print(1)\n"), RawEntry(b"a/b", b"x" * 500, method=8)
    trailer = descriptor(b"x" * 500, len(deflated(b"x" * 500)))
    whole = [
        make_zip({"main.py": "print(1)\n", "한글/a": bytes(100)}),
        make_zip({"main.py": "print(1)\n"}, method=zipfile.ZIP_STORED),
        raw_zip(stored, RawEntry(b"d/", b""), end=End(comment=b"a comment")),
        raw_zip(RawEntry(b"a/b", b"x" * 500, method=8, flags=8, trailer=trailer)),
        raw_zip(stored, packed, end=End(entries=0xFFFF)),
        raw_zip(RawEntry(b"main.py", b"1", extra=extra_field(0x5455, b"\x07" + bytes(12)))),
    ]
    yield from (_RAW + content for content in whole)


def _message(data: bytes, _: Path) -> str:
    body = message_of(data[1:]) if _is_built(data) else _as_sent(data[1:])
    return type(messages.tried(body)).__name__


def _as_sent(data: bytes) -> str | bytes:
    """Bytes as they are, or, as from SQS, text."""
    return data if data[:1] == b"\xff" else data.decode(errors="surrogateescape")


def _messages() -> Iterator[bytes]:
    yield from (_BUILT + data for data in _random_inputs(30))
    job = {"requestId": "r1", "s3Key": "k", "functionId": "f", "runtime": "go", "s3Bucket": "abc"}
    numbers = {"memoryMb": 64, "timeoutMs": 1000, "input": {"a": [1, None, "é", -1.5e9]}, "modelId": "m"}
    texts = [
        json.dumps(job | numbers),
        json.dumps(job | {"input": "\ud800"}),
        json.dumps(job | {"input": [float("nan"), float("inf")]}),
        json.dumps(job | numbers, indent=1, ensure_ascii=False),
        '\ufeff{"requestId":"r1","requestId":"r2","s3Key":null,"memoryMb":"x"}',
        '{"s3Key":"k","input":' + "[" * 50 + "]" * 50 + "}",
    ]
    yield from (_RAW + text.encode(errors="surrogatepass") for text in texts)


def _conversation(data: bytes, folder: Path) -> str:
    if _is_built(data):
        pieces = conversations.conversation_of(data[1:])
    else:
        pieces = [data[at : at + _PIECE_BYTES] for at in range(1, len(data), _PIECE_BYTES)]
    ended = conversations.tried(pieces, folder / "staging")
    if isinstance(ended, Execution):
        return str(ended.error_type or "success")
    return type(ended).__name__


def _conversations() -> Iterator[bytes]:
    yield from (_BUILT + data for data in _random_inputs(30))
    outputs = says.file(b"a/b", b"content") + says.refused(b"link")
    greeting = says.hello() + says.ready()
    for end in (says.exited(), says.exited(256, stdout_total=500), says.exited(9), says.exited(exec_error=2)):
        yield _RAW + greeting + end + outputs + says.done()
    yield _RAW + greeting + says.exited() + says.done(clean=False)
    yield _RAW + says.hello(1)


def _canary(data: bytes, _: Path) -> str:
    """Something that is wrong, to see that it is found."""
    if len(data) > 2 and data[0] == ord("b") and data[1] == ord("u"):
        assert data[2] % 16, "found it"
    return "looked at"


_LONGEST: Final = 4096
CANARY: Final = "canary"
TARGETS: Final = {
    target.name: target
    for target in (
        Target(CANARY, lambda: iter([b"bu"]), _canary, 8),
        Target("archive", _archives, _archive, _LONGEST),
        Target("job", _messages, _message, _LONGEST),
        Target("protocol", _conversations, _conversation, _LONGEST),
    )
}
