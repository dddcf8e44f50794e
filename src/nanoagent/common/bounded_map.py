"""A dictionary of limited size, for data about messages, functions and code."""

from __future__ import annotations

from collections import UserDict
from typing import TypeVar

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class BoundedMap(UserDict[KeyT, ValueT]):
    """A dictionary that drops its oldest entry when it has too many entries.

    The oldest entry is the one whose last write is longest ago. Reading does not make an entry younger:
    otherwise an entry that is read all the time would never be dropped.

    Args:
        max_entries: The largest number of entries.
    """

    def __init__(self, max_entries: int) -> None:
        super().__init__()
        self._max_entries = max_entries

    def __setitem__(self, key: KeyT, value: ValueT) -> None:
        self.data.pop(key, None)  # otherwise an overwritten key would keep its old position
        self.data[key] = value
        if len(self.data) > self._max_entries:
            del self.data[next(iter(self.data))]
