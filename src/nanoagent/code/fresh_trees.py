"""Remembers the trees that may be used for a short time without asking the object store again.

A tree is the unpacked code of one object. For `CODE_FRESH_SECONDS` after a request for an object, jobs of
this process use its tree without another request.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanoagent.code.pin import Pin


@dataclass(frozen=True, slots=True)
class _FreshTree:
    """A tree that may be used without a request.

    Attributes:
        pin: Keeps the tree on disk.
        expiry: The timer that forgets the tree.
    """

    pin: Pin
    expiry: asyncio.TimerHandle


class FreshTrees:
    """The trees that may be used without a request. Each holds a pin, and so a file descriptor.

    Args:
        fresh_s: How long a tree is fresh after the request for its object, seconds. 0: never.
        max_trees: The largest number of trees.
    """

    def __init__(self, fresh_s: float, max_trees: int) -> None:
        self._fresh_s = fresh_s
        self._max_trees = max_trees
        # The tree that was remembered first comes first.
        self._trees: dict[tuple[str, str], _FreshTree] = {}

    def __len__(self) -> int:
        return len(self._trees)

    def recall(self, bucket: str, key: str) -> Pin | None:
        """Return a pin of an object's tree; None if the store must be asked. The caller releases the pin."""
        tree = self._trees.get((bucket, key))
        if tree is None:
            return None
        if not tree.pin.has_content():
            self.forget(bucket, key)
            return None
        return tree.pin.share()

    def remember(self, bucket: str, key: str, pin: Pin, asked_at: float) -> None:
        """Remember that a request has just confirmed the tree of an object.

        Args:
            bucket: The bucket's name.
            key: The object's key.
            pin: A pin of the object's tree. The caller still releases it.
            asked_at: The start of the request, in the loop's clock. The tree is fresh from that time, because
                a version that was uploaded later is perhaps not in the answer.
        """
        loop = asyncio.get_running_loop()
        self.forget(bucket, key)
        if asked_at + self._fresh_s <= loop.time():
            return
        if len(self._trees) >= self._max_trees:
            self.forget(*next(iter(self._trees)))
        expiry = loop.call_at(asked_at + self._fresh_s, self.forget, bucket, key)
        self._trees[bucket, key] = _FreshTree(pin.share(), expiry)

    def forget(self, bucket: str, key: str) -> None:
        """Forget the tree of an object, if there is one, and release its pin."""
        tree = self._trees.pop((bucket, key), None)
        if tree is not None:
            tree.expiry.cancel()
            tree.pin.release()

    def forget_all(self) -> None:
        """Forget all trees."""
        for bucket, key in list(self._trees):
            self.forget(bucket, key)
