"""`python -m support.agents.watched_agent`: an agent that tells on SIGUSR2 what it holds in memory.

The production code knows nothing of it. What is told goes to the file that WATCH names, as one JSON document,
written in whole: `Holdings`.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections import Counter, deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from nanoagent import cli

WATCH: Final = "WATCH"
_SIZED: Final = (dict, list, set, frozenset, deque, tuple)
_MOST_TYPES: Final = 400


@dataclass(frozen=True, slots=True)
class Holdings:
    """What an agent holds, after a collection of garbage.

    Attributes:
        number: Which telling it is, from 1.
        objects: Objects that the collector knows.
        types: How many of them there are of each type.
        maps: Class and attribute → how many entries all its objects' dicts, lists, sets and so on have.
        private_kib: Memory of the process that it shares with nobody, KiB.
    """

    number: int
    objects: int
    types: dict[str, int]
    maps: dict[str, int]
    private_kib: int


def read(path: Path) -> Holdings:
    """What was told last."""
    return Holdings(**json.loads(path.read_text()))


def private_kib() -> int:
    """What the kernel counts as this process's own, KiB (proc_pid_smaps(5))."""
    amounts = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    return sum(int(amount[1]) for amount in amounts if amount[0] in {"Private_Clean:", "Private_Dirty:"})


def _holdings(number: int) -> Holdings:
    gc.unfreeze()  # what the agent has set aside at its start is looked at as well
    gc.collect()
    known = gc.get_objects()
    types = Counter(map(_type_of, known))
    maps: Counter[str] = Counter()
    for each in known:
        if _type_of(each).startswith("nanoagent"):
            for name, value in _attributes(each):
                if isinstance(value, _SIZED):
                    maps[f"{_type_of(each)}.{name}"] += len(value)
    objects = len(known)
    del known
    return Holdings(number, objects, dict(types.most_common(_MOST_TYPES)), dict(maps), private_kib())


def _type_of(each: object) -> str:
    return f"{type(each).__module__}.{type(each).__qualname__}"


def _attributes(each: object) -> list[tuple[str, Any]]:
    slots = [name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())]
    names = [*slots, *getattr(each, "__dict__", {})]
    return [(name, getattr(each, name, None)) for name in names]


def _tell_on_signal(path: Path) -> None:
    told = 0

    def tell(*_: object) -> None:
        nonlocal told
        told += 1
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(_holdings(told))))
        draft.rename(path)

    signal.signal(signal.SIGUSR2, tell)


if __name__ == "__main__":
    _tell_on_signal(Path(os.environ[WATCH]))
    sys.exit(cli.main())
