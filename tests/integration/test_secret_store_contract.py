"""What every `SecretStore` promises, on AWS's protocols and in memory."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from aiohttp import web

from nanoagent.model.errors import SecretsError
from nanoagent.model.secret import SecretReference, SecretService
from nanoagent.secrets.aws import AwsSecretStore
from nanoagent.secrets.base import Absence, SecretMissing
from nanoagent.secrets.memory import InMemorySecretStore
from support.services.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.aws.clients import AwsClients
    from nanoagent.dev.local_services import EmbeddedStack
    from nanoagent.secrets.base import SecretStore

SSM, SECRETS_MANAGER = SecretService.SSM, SecretService.SECRETS_MANAGER
VALUE = "pass\nwörd\t'\"{}"
DEADLINE_S = 90


class Vault(Protocol):
    """A store, and a way to it that is not the store's."""

    @property
    def store(self) -> SecretStore: ...

    async def write(self, reference: SecretReference, value: str | bytes) -> None: ...


@dataclass
class MemoryVault:
    store: InMemorySecretStore = field(default_factory=InMemorySecretStore)

    async def write(self, reference: SecretReference, value: str | bytes) -> None:
        self.store.values[reference] = value


@dataclass
class AwsVault:
    store: AwsSecretStore
    ssm: Any
    secrets_manager: Any

    async def write(self, reference: SecretReference, value: str | bytes) -> None:
        if reference.service is SSM:
            await self.ssm.put_parameter(
                Name=reference.name, Value=value, Type="SecureString", Overwrite=True
            )
            return
        kind = "SecretString" if isinstance(value, str) else "SecretBinary"
        try:
            await self.secrets_manager.create_secret(Name=reference.name, **{kind: value})
        except self.secrets_manager.exceptions.ResourceExistsException:
            await self.secrets_manager.put_secret_value(SecretId=reference.name, **{kind: value})


async def aws_vault(clients: AwsClients) -> AwsVault:
    ssm, secrets_manager = await clients.ssm(), await clients.secrets_manager()
    return AwsVault(AwsSecretStore(ssm, secrets_manager), ssm, secrets_manager)


@pytest.fixture
async def aws(clients: AwsClients) -> AwsVault:
    return await aws_vault(clients)


@pytest.fixture(params=["aws", "memory"])
async def vault(request: pytest.FixtureRequest, clients: AwsClients) -> Vault:
    return MemoryVault() if request.param == "memory" else await aws_vault(clients)


@pytest.fixture(params=SecretService)
def reference(request: pytest.FixtureRequest) -> SecretReference:
    """A secret that does not exist yet."""
    slash = "/" if request.param is SSM else ""
    return SecretReference(request.param, f"{slash}test/{secrets.token_hex(6)}")


async def test_a_value_is_read_as_it_was_written(vault: Vault, reference: SecretReference):
    await vault.write(reference, VALUE)
    assert await vault.store.read(reference) == VALUE
    await vault.write(reference, "another")
    assert await vault.store.read(reference) == "another"


async def test_a_key_is_not_the_stores_business(vault: Vault, reference: SecretReference):
    await vault.write(reference, '{"a": "b"}')
    assert await vault.store.read(SecretReference(reference.service, reference.name, "a")) == '{"a": "b"}'


async def test_a_secret_that_does_not_exist_is_missing(vault: Vault, reference: SecretReference):
    with pytest.raises(SecretMissing) as caught:
        await vault.store.read(reference)
    assert caught.value.absence is Absence.NAME
    assert str(reference) in str(caught.value)


async def test_a_binary_value_is_no_text(vault: Vault):
    reference = SecretReference(SECRETS_MANAGER, f"test/{secrets.token_hex(6)}")
    await vault.write(reference, b"\x00\xff")
    with pytest.raises(SecretMissing) as caught:
        await vault.store.read(reference)
    assert caught.value.absence is Absence.BINARY


# --- only on AWS


async def test_a_version_or_a_stage_selects_an_earlier_value(aws: AwsVault):
    parameter = SecretReference(SSM, f"/test/{secrets.token_hex(6)}")
    secret = SecretReference(SECRETS_MANAGER, f"test/{secrets.token_hex(6)}")
    for value in ("one", "two"):
        await aws.write(parameter, value)
        await aws.write(secret, value)
    assert await aws.store.read(SecretReference(SSM, parameter.name, version="1")) == "one"
    previous = SecretReference(SECRETS_MANAGER, secret.name, stage="AWSPREVIOUS")
    assert await aws.store.read(previous) == "one"
    versions = (await aws.secrets_manager.describe_secret(SecretId=secret.name))["VersionIdsToStages"]
    old = next(version for version, stages in versions.items() if "AWSPREVIOUS" in stages)
    assert await aws.store.read(SecretReference(SECRETS_MANAGER, secret.name, version=old)) == "one"
    for missing in (
        SecretReference(SSM, parameter.name, version="9"),
        SecretReference(SECRETS_MANAGER, secret.name, version="0" * 32),
        SecretReference(SECRETS_MANAGER, secret.name, stage="NONE"),
    ):
        with pytest.raises(SecretMissing) as caught:
            await aws.store.read(missing)
        assert caught.value.absence is Absence.NAME


async def test_a_secret_that_is_being_deleted_says_so(aws: AwsVault):
    reference = SecretReference(SECRETS_MANAGER, f"test/{secrets.token_hex(6)}")
    await aws.write(reference, "one")
    await aws.secrets_manager.delete_secret(SecretId=reference.name)
    with pytest.raises(SecretMissing) as caught:
        await aws.store.read(reference)
    assert caught.value.absence is Absence.DELETED


@pytest.fixture
async def refusing(stack: EmbeddedStack) -> AsyncIterator[tuple[AwsSecretStore, Recorder]]:
    """A store whose service answers with errors."""
    async with Recorder(stack.endpoint_url) as recorder:
        clients = stack.clients()
        clients.endpoint_url = recorder.url
        async with clients:
            yield (await aws_vault(clients)).store, recorder


@pytest.mark.parametrize(
    ("code", "absence"),
    [
        ("AccessDeniedException", Absence.DENIED),
        ("InvalidKeyId", Absence.KEY_UNUSABLE),
        ("DecryptionFailure", Absence.KEY_UNUSABLE),
        ("ValidationException", Absence.NAME),
    ],
)
async def test_an_error_about_the_secret_is_not_the_platforms(
    code: str, absence: Absence, reference: SecretReference, refusing: tuple[AwsSecretStore, Recorder]
):
    store, recorder = refusing
    recorder.refusal = lambda _: (400, code)
    with pytest.raises(SecretMissing) as caught:
        await store.read(reference)
    actions = {SSM: "ssm:GetParameter", SECRETS_MANAGER: "secretsmanager:GetSecretValue"}
    assert caught.value.absence is absence
    assert caught.value.action == (actions[reference.service] if absence is Absence.DENIED else None)
    assert len(recorder.calls) == 1


@pytest.mark.parametrize(
    ("status", "code", "calls"),
    [
        (400, "ThrottlingException", 3),
        (500, "InternalServerError", 3),
        (400, "ExpiredTokenException", 1),
        (400, "SomethingNew", 1),
    ],
)
async def test_other_errors_are_the_platforms_and_throttling_is_tried_again(
    status: int,
    code: str,
    calls: int,
    reference: SecretReference,
    refusing: tuple[AwsSecretStore, Recorder],
):
    store, recorder = refusing
    recorder.refusal = lambda _: (status, code)
    with pytest.raises(SecretsError, match=str(reference)):
        await store.read(reference)
    assert len(recorder.calls) == calls


async def test_a_service_that_does_not_answer_is_given_up(clients: AwsClients, reference: SecretReference):
    clients.endpoint_url = "http://127.0.0.1:9"
    ssm, secrets_manager = await clients.ssm(), await clients.secrets_manager()
    with pytest.raises(SecretsError, match="it does not answer"):
        await AwsSecretStore(ssm, secrets_manager, call_timeout_s=20).read(reference)


@pytest.mark.parametrize(
    "answer", ["{}", '{"Parameter": {}}', "hunter22", '{"SecretString": 5, "x": "hunter22"}']
)
async def test_an_answer_without_a_value_is_not_shown(
    answer: str, stack: EmbeddedStack, reference: SecretReference
):
    async def respond(_: web.Request) -> web.Response:
        return web.Response(text=answer, content_type="application/x-amz-json-1.1")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    clients = stack.clients()
    clients.endpoint_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with clients, asyncio.timeout(DEADLINE_S):
            store = (await aws_vault(clients)).store
            with pytest.raises(SecretsError) as caught:
                await store.read(reference)
    finally:
        await runner.cleanup()
    assert "hunter22" not in str(caught.value)
