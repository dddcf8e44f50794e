"""A store of secrets in memory, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.secrets.base import Absence, SecretMissing

if TYPE_CHECKING:
    from nanoagent.model.secret import SecretReference


class InMemorySecretStore:
    """A `SecretStore` in memory.

    Attributes:
        values: The values. A value of bytes is not a text. An exception is raised instead of a value.
        reads: The references that were read, in order.
    """

    def __init__(self) -> None:
        self.values: dict[SecretReference, str | bytes | Exception] = {}
        self.reads: list[SecretReference] = []

    async def read(self, reference: SecretReference) -> str:
        """Return the value of a whole secret; see `SecretStore.read`."""
        self.reads.append(reference)
        value = self.values.get(reference.secret)
        if value is None:
            raise SecretMissing(f"read {reference.secret}: not found", Absence.NAME)
        if isinstance(value, Exception):
            raise value
        if isinstance(value, bytes):
            raise SecretMissing(f"read {reference.secret}: its value is binary", Absence.BINARY)
        return value
