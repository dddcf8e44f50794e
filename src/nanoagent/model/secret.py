"""References to secrets in the field `env` of a job. docs/contract.md, section 1, describes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class SecretService(StrEnum):
    """The services that keep secrets. The values are names of the contract."""

    SSM = "ssm"
    SECRETS_MANAGER = "secretsManager"


# The names that the services allow: "PutParameter" in the API Reference of AWS Systems Manager, and
# "CreateSecret" in that of AWS Secrets Manager. ARNs are not names: an allow-list of names would not apply to
# them. A colon after a name selects a version in Systems Manager; references have `version` for that.
_NAMES: Final = {
    SecretService.SSM: re.compile(r"[A-Za-z0-9_./-]{1,1011}"),
    SecretService.SECRETS_MANAGER: re.compile(r"[A-Za-z0-9/_+=.@-]{1,512}"),
}
_VERSIONS: Final = {
    SecretService.SSM: re.compile(r"[1-9][0-9]{0,9}"),
    SecretService.SECRETS_MANAGER: re.compile(r"[A-Za-z0-9-]{32,64}"),
}
_STAGE: Final = re.compile(r"[A-Za-z0-9/_+=.@-]{1,256}")
_MAX_KEY: Final = 256
# Systems Manager reads secrets of Secrets Manager under this name, which would evade the rules for those.
_OTHER_SERVICE: Final = re.compile(r"/*aws/reference/secretsmanager(?:/|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SecretReference:
    """A reference to a secret.

    Attributes:
        service: The service that keeps the secret.
        name: The name of the secret in the service.
        key: The member of the secret's JSON object; None for the whole secret.
        version: The version; None for the current one.
        stage: The staging label of the version, only for Secrets Manager; None for the current version.
    """

    service: SecretService
    name: str
    key: str | None = None
    version: str | None = None
    stage: str | None = None

    @property
    def secret(self) -> SecretReference:
        """The reference to the whole secret."""
        return SecretReference(self.service, self.name, None, self.version, self.stage)

    def __str__(self) -> str:
        details = {"key": self.key, "version": self.version, "stage": self.stage}
        shown = ", ".join(f"{name} {value}" for name, value in details.items() if value is not None)
        return f"{self.service}:{self.name}" + (f" ({shown})" if shown else "")


def parse(value: object) -> SecretReference | None:
    """Return the reference that a JSON value is; None if it is not a valid reference.

    Args:
        value: A parsed JSON value.
    """
    if not isinstance(value, dict) or not all(isinstance(member, str) for member in value.values()):
        return None
    services = [service for service in SecretService if service in value]
    if len(services) != 1 or not value.keys() <= {services[0].value, "key", "version", "stage"}:
        return None
    service = services[0]
    reference = SecretReference(
        service, value[service], value.get("key"), value.get("version"), value.get("stage")
    )
    return reference if _is_valid(reference) else None


def _is_valid(reference: SecretReference) -> bool:
    is_ssm = reference.service is SecretService.SSM
    return (
        is_name(reference.service, reference.name)
        and not (is_ssm and _OTHER_SERVICE.match(reference.name))
        and (reference.key is None or (1 <= len(reference.key) <= _MAX_KEY and reference.key.isprintable()))
        and (reference.version is None or bool(_VERSIONS[reference.service].fullmatch(reference.version)))
        and (reference.stage is None or (not is_ssm and bool(_STAGE.fullmatch(reference.stage))))
        and (reference.version is None or reference.stage is None)
    )


def is_name(service: SecretService, text: str) -> bool:
    """Whether a text may be the name of a secret: characters of the service, and no segment `.` or `..`."""
    return bool(_NAMES[service].fullmatch(text)) and not {".", ".."} & set(text.split("/"))
