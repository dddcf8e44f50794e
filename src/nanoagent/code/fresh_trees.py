"""Trees of objects about which the store was asked a moment ago.

During that time no job makes a request for the code. Only this process uses the answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanoagent.code.pin import Pin


@dataclass(frozen=True, slots=True)
class _FreshTree:
    """A tree whose object needs no request.

    Attributes:
        pin: Keeps the tree on disk.
        expiry: The timer that ends that.
    """

    pin: Pin
    expiry: asyncio.TimerHandle


class FreshTrees:
    """The trees whose objects need no request. Each holds a pin, and so a file descriptor.

    Args:
        fresh_s: The time for which an answer of the store is used, seconds; 0 means not at all.
        most: The limit of their number.
    """

    def __init__(self, fresh_s: float, most: int) -> None:
        self._fresh_s = fresh_s
        self._most = most
        # The object about which the store was asked longest ago comes first.
        self._trees: dict[tuple[str, str], _FreshTree] = {}

    def __len__(self) -> int:
        return len(self._trees)

    def recall(self, bucket: str, key: str) -> Pin | None:
        """Return a pin of an object's tree, which the caller releases; None if the store must be asked."""
        tree = self._trees.get((bucket, key))
        if tree is None:
            return None
        if not tree.pin.has_content():
            self.forget(bucket, key)
            return None
        return tree.pin.share()

    def remember(self, bucket: str, key: str, pin: Pin, asked_at: float) -> None:
        """Note the answer of the store.

        Args:
            bucket: The bucket's name.
            key: The object's key.
            pin: A pin of the object's tree. The caller still releases it.
            asked_at: The time of the request, in the loop's clock. The answer may not have a version that was
                uploaded after it.
        """
        loop = asyncio.get_running_loop()
        self.forget(bucket, key)
        if asked_at + self._fresh_s <= loop.time():
            return
        if len(self._trees) >= self._most:
            self.forget(*next(iter(self._trees)))
        expiry = loop.call_at(asked_at + self._fresh_s, self.forget, bucket, key)
        self._trees[bucket, key] = _FreshTree(pin.share(), expiry)

    def forget(self, bucket: str, key: str) -> None:
        """Forget the answer for an object, if there is one, and release its tree."""
        tree = self._trees.pop((bucket, key), None)
        if tree is not None:
            tree.expiry.cancel()
            tree.pin.release()

    def forget_all(self) -> None:
        """Forget all answers."""
        for bucket, key in list(self._trees):
            self.forget(bucket, key)
