"""What a run has left, as it came out of its container, in a form that a test can compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanoagent.runtime import wire

if TYPE_CHECKING:
    from support.containers import Ran

LINK, SPECIAL, COUNT, SIZE, TOTAL, DEPTH, UNREADABLE = (wire.REFUSALS[code] for code in range(1, 8))
NAMED_REFUSALS = 100  # of a result's outputErrors; more are summed up


@dataclass(frozen=True, slots=True)
class Left:
    """What arrived of a run's /output.

    Attributes:
        files: Bytes by path, in the order of their coming.
        refused: Path and reason, likewise.
    """

    files: dict[str, bytes]
    refused: list[tuple[str, str]]

    def below(self, folder: str) -> Left:
        """The same of one folder, with paths from there."""
        start = f"{folder}/"
        return Left(
            {path.removeprefix(start): data for path, data in self.files.items() if path.startswith(start)},
            [(path.removeprefix(start), why) for path, why in self.refused if path.startswith(start)],
        )


def left_by(ran: Ran) -> Left:
    """What arrived; each file's bytes are read from where the agent has put them."""
    collected = ran.execution.collected
    files = {file.path: file.spooled.read_bytes() for file in collected.files}
    assert len(files) == len(collected.files), "a path came twice"
    assert [file.size for file in collected.files] == [len(data) for data in files.values()]
    return Left(files, [(error.path, error.reason) for error in collected.refused])
