"""The budgets of budgets.toml: how often a hot job may do what can be counted exactly."""

from __future__ import annotations

import enum
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping


TABLE: Final = Path(__file__).with_name("budgets.toml")
_SHOWN_TABLE: Final = "benchmarks/budgets.toml"
_KEPT_SHARE: Final = 0.8


class Verdict(enum.Enum):
    """How a measured value relates to its budget."""

    KEPT = "within the budget"
    EXCEEDED = "over the budget"
    BEATEN = "far below the budget"


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of one counter.

    Attributes:
        counter: The name of the counter.
        side: Where it is counted: `agent`, `container` or `queue`.
        why: What it counts, and the reason of its numbers.
        varies: The runtimes whose measurements differ from one time to the next. For the others, a value far
            below the budget is an error, too.
        most: The largest number, by runtime.
    """

    counter: str
    side: str
    why: str
    varies: frozenset[Runtime]
    most: Mapping[str, float]

    def judge(self, runtime: Runtime, measured: float) -> Verdict:
        """Compare a measured value with the budget."""
        if measured > self.most[runtime]:
            return Verdict.EXCEEDED
        if runtime not in self.varies and measured < _KEPT_SHARE * self.most[runtime]:
            return Verdict.BEATEN
        return Verdict.KEPT

    def message(self, runtime: Runtime, measured: float) -> str:
        """Return the message for a value that is not within the budget."""
        most = self.most[runtime]
        fact = f"{self.counter} of a hot {runtime} job: {measured:g}, budget {most:g} ({_SHOWN_TABLE})."
        if measured > most:
            advice = "Make the job cheaper. Raise the budget only with a reason in the table."
        else:
            advice = "More than 20 % below the budget: lower the budget, so that the gain is kept."
        return f"{fact} {advice} {self.why}"


def read(table: Path = TABLE) -> list[Budget]:
    """Read the table."""
    document = tomllib.loads(table.read_text())
    found = []
    for side, counters in document.items():
        for counter, row in counters.items():
            most = row["most"] if isinstance(row["most"], dict) else dict.fromkeys(Runtime, row["most"])
            found.append(Budget(counter, side, row["why"], _varies(row.get("varies", [])), most))
    return found


def _varies(given: bool | list[str]) -> frozenset[Runtime]:  # noqa: FBT001 - a value of the table
    if isinstance(given, bool):
        return frozenset(Runtime) if given else frozenset()
    return frozenset(map(Runtime, given))
