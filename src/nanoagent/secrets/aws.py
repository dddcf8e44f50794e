"""The store of secrets on AWS: Systems Manager's Parameter Store, and Secrets Manager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nanoagent.aws import failures as aws_failures
from nanoagent.aws.failures import FailureKind
from nanoagent.model.errors import SecretsError
from nanoagent.model.secret import SecretService
from nanoagent.secrets.base import Absence, SecretMissing

if TYPE_CHECKING:
    from nanoagent.model.secret import SecretReference

_CALL_TIMEOUT_S: Final = 30.0  # with the client's retries; the value has a few KiB
_ACTIONS: Final = {
    SecretService.SSM: "ssm:GetParameter",
    SecretService.SECRETS_MANAGER: "secretsmanager:GetSecretValue",
}
# "GetParameter" in the API Reference of AWS Systems Manager, "GetSecretValue" in that of AWS Secrets Manager.
_ABSENCES: Final = {
    "ParameterNotFound": Absence.NAME,
    "ParameterVersionNotFound": Absence.NAME,
    "ResourceNotFoundException": Absence.NAME,
    "ValidationException": Absence.NAME,
    "InvalidParameterException": Absence.NAME,
    "InvalidKeyId": Absence.KEY_UNUSABLE,
    "DecryptionFailure": Absence.KEY_UNUSABLE,
    "InvalidRequestException": Absence.DELETED,
}


class AwsSecretStore:
    """A `SecretStore` on AWS.

    Args:
        ssm: An aiobotocore client of Systems Manager. Its owner closes it.
        secrets_manager: An aiobotocore client of Secrets Manager. Its owner closes it.
        call_timeout_s: The longest time of a call, seconds.
    """

    def __init__(self, ssm: Any, secrets_manager: Any, *, call_timeout_s: float = _CALL_TIMEOUT_S) -> None:
        self._ssm = ssm
        self._secrets_manager = secrets_manager
        self._call_timeout_s = call_timeout_s

    async def read(self, reference: SecretReference) -> str:
        """Return the value of a whole secret; see `SecretStore.read`."""
        operation = f"read {reference.secret}"
        async with aws_failures.deadline(self._call_timeout_s, SecretsError, operation):
            try:
                value = await self._ask(reference)
            except aws_failures.CALL_ERRORS as exc:
                code = aws_failures.error_code(exc)
                if code == "ResponseParserError":  # its text has the answer, and so perhaps the value
                    raise SecretsError(f"{operation}: the answer cannot be parsed") from None
                absence = _absence_of(exc, code)
                if absence is None:
                    raise
                action = None
                if absence is Absence.DENIED:
                    action = aws_failures.missing_action(str(exc)) or _ACTIONS[reference.service]
                raise SecretMissing(f"{operation}: {aws_failures.describe(exc)}", absence, action) from exc
        if value is None:
            raise SecretMissing(f"{operation}: its value is binary", Absence.BINARY)
        return value

    async def _ask(self, reference: SecretReference) -> str | None:
        """Return the value that the service has; None if it is binary."""
        if reference.service is SecretService.SSM:
            selector = "" if reference.version is None else f":{reference.version}"
            answer = await self._ssm.get_parameter(Name=f"{reference.name}{selector}", WithDecryption=True)
            return _text(answer.get("Parameter", {}).get("Value"))
        wanted = {"SecretId": reference.name}
        if reference.version is not None:
            wanted["VersionId"] = reference.version
        if reference.stage is not None:
            wanted["VersionStage"] = reference.stage
        answer = await self._secrets_manager.get_secret_value(**wanted)
        return None if "SecretBinary" in answer else _text(answer.get("SecretString"))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise SecretsError("the answer of the service has no value")
    return value


def _absence_of(error: BaseException, code: str) -> Absence | None:
    """Return why the secret cannot be used; None if the failure does not concern the secret."""
    if aws_failures.failure_kind(error) is FailureKind.DENIED:
        # Secrets Manager does not name the permission: "Access to KMS is not allowed".
        return Absence.KEY_UNUSABLE if "Access to KMS" in str(error) else Absence.DENIED
    return _ABSENCES.get(code)
