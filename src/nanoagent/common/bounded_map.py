"""A map of bounded size, for what a worker remembers of messages, functions and code."""

from __future__ import annotations

from collections import UserDict
from typing import TypeVar

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class BoundedMap(UserDict[KeyT, ValueT]):
    """A dictionary that drops the entry written longest ago when it has too many.

    Reading an entry does not renew it: what is remembered of an object that is asked for all the time would
    otherwise never go.

    Args:
        most: How many entries it has at most.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: KeyT, value: ValueT) -> None:
        self.data.pop(key, None)  # a dictionary keeps the place of a key that is written again
        self.data[key] = value
        if len(self.data) > self._most:
            del self.data[next(iter(self.data))]
