"""The interface of a store of secrets."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

from nanoagent.model.errors import NanoAgentError

if TYPE_CHECKING:
    from nanoagent.model.secret import SecretReference


class Absence(Enum):
    """Why a secret cannot be used. `explanations` has the texts for each reason."""

    NAME = "there is no such secret or version"
    DENIED = "access is denied"
    KEY_UNUSABLE = "its KMS key cannot be used"
    DELETED = "it is scheduled for deletion"
    BINARY = "its value is not a text"
    MEMBER = "its value has no such member"


class SecretMissing(NanoAgentError):  # noqa: N818 - a fact about the secret, not a failure
    """A secret does not exist or cannot be used; the reason concerns only this secret.

    Args:
        message: The message for the log, with the service's error text. It has no value.
        absence: The reason.
        action: The missing permission ("kms:Decrypt"); None if it is not known.
    """

    def __init__(self, message: str, absence: Absence, action: str | None = None) -> None:
        super().__init__(message)
        self.absence = absence
        self.action = action


class SecretStore(Protocol):
    """Keeps secrets."""

    async def read(self, reference: SecretReference) -> str:
        """Return the value of a whole secret; `reference.key` has no effect.

        Raises:
            SecretMissing: The secret cannot be used; `absence` is the reason.
            SecretsError: The store failed, for example because it throttles.
        """
        ...
