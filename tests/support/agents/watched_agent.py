"""`python -m support.agents.watched_agent`: a worker that reports its memory on SIGUSR2.

The production code has no test code. The report is one JSON document, `Holdings`, in the file of the variable
WATCH. The file is replaced as a whole.
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
    """The objects and the memory of a worker, after a garbage collection.

    Attributes:
        number: The number of the report, from 1.
        objects: The number of objects that the garbage collector knows.
        types: The number of these objects by type.
        maps: Class and attribute → the number of entries in the dicts, lists and sets of all its objects.
        private_kib: The private memory of the process, KiB.
    """

    number: int
    objects: int
    types: dict[str, int]
    maps: dict[str, int]
    private_kib: int


def read(path: Path) -> Holdings:
    """Return the last report."""
    return Holdings(**json.loads(path.read_text()))


def private_kib() -> int:
    """Return the private memory of this process, in KiB (proc_pid_smaps(5))."""
    amounts = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    return sum(int(amount[1]) for amount in amounts if amount[0] in {"Private_Clean:", "Private_Dirty:"})


def _holdings(number: int) -> Holdings:
    gc.unfreeze()  # also look at the objects that the worker froze at its start
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
