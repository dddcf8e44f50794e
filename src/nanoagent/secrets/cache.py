"""Reads each secret once for all jobs that need it, and keeps the value for a short time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.common.bounded_map import BoundedMap
from nanoagent.model.errors import SecretsError
from nanoagent.secrets.base import SecretMissing

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.model.secret import SecretReference
    from nanoagent.secrets.base import SecretStore

_MAX_ENTRIES: Final = 256  # with the largest values of AWS, 64 KiB each, the cache has 16 MiB
_FAILURE_S: Final = 2.0
"""How long a failure is kept at most, seconds: a missing secret may be created at any time."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer of the store for one secret: a value or an exception."""

    value: str = field(default="", repr=False)
    error: SecretMissing | SecretsError | None = None


class SecretCache:
    """Keeps the answers of a store in memory. One read serves all callers that want the same secret.

    Args:
        store: The store.
        keep_s: How long a value is kept, seconds; 0: not at all.
        max_entries: The largest number of answers. The oldest is dropped.
        on_read: Called with the outcome of each read of the store: `read`, `missing` or `failed`; and with
            `cached` for each answer from memory.
    """

    def __init__(
        self,
        store: SecretStore,
        keep_s: float,
        *,
        max_entries: int = _MAX_ENTRIES,
        on_read: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._keep_s = keep_s
        self._on_read = on_read
        self._answers: BoundedMap[SecretReference, _Answer] = BoundedMap(max_entries)
        self._reads: dict[SecretReference, asyncio.Task[_Answer]] = {}

    async def read(self, reference: SecretReference) -> str:
        """Return the value of a whole secret; see `SecretStore.read`. A cancelled caller stops no read."""
        reference = reference.secret
        answer = self._answers.get(reference)
        if answer is not None:
            self._on_read("cached")
        else:
            answer = await self._join(reference)
        if answer.error is not None:
            raise answer.error.with_traceback(None)
        return answer.value

    async def close(self) -> None:
        """Forget all values, and cancel all reads."""
        reads = list(self._reads.values())
        for read in reads:
            read.cancel()
        if reads:
            await asyncio.wait(reads)
        self._answers.clear()

    async def _join(self, reference: SecretReference) -> _Answer:
        read = self._reads.get(reference)
        if read is None:
            read = self._reads[reference] = asyncio.create_task(self._ask(reference))
            read.add_done_callback(lambda _: self._reads.pop(reference, None))
        await asyncio.wait({read})
        if read.cancelled():
            raise SecretsError(f"read {reference}: the worker stops")
        return read.result()

    async def _ask(self, reference: SecretReference) -> _Answer:
        try:
            answer = _Answer(await self._store.read(reference))
            self._on_read("read")
        except SecretMissing as missing:
            answer = _Answer(error=missing)
            self._on_read("missing")
        except SecretsError as failure:
            answer = _Answer(error=failure)
            self._on_read("failed")
        keep_s = self._keep_s if answer.error is None else min(self._keep_s, _FAILURE_S)
        if keep_s > 0:
            self._answers[reference] = answer
            # The value is removed, and not only ignored, so that it is in memory for a short time only.
            asyncio.get_running_loop().call_later(keep_s, self._forget, reference, answer)
        return answer

    def _forget(self, reference: SecretReference, answer: _Answer) -> None:
        if self._answers.get(reference) is answer:
            del self._answers[reference]
