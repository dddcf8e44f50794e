"""What a job gets for its references, and the errors that its sender sees."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.config.secret_rules import parse_rules
from nanoagent.model.errors import Rejected, SecretsError
from nanoagent.model.result import ErrorType
from nanoagent.model.secret import SecretReference, SecretService
from nanoagent.secrets.base import Absence, SecretMissing
from nanoagent.secrets.cache import SecretCache
from nanoagent.secrets.memory import InMemorySecretStore
from nanoagent.secrets.resolver import SecretResolver
from support.doubles.fakes import make_job

if TYPE_CHECKING:
    from nanoagent.model.job import Job

HANGUL = re.compile("[가-힣]")
VALUE = "hunter22"
DB = SecretReference(SecretService.SSM, "/prod/db")
JSON = SecretReference(SecretService.SECRETS_MANAGER, "prod/db")


def resolver(store: InMemorySecretStore, rules: str = "*=ssm:**,*=secretsManager:**", **options: Any) -> Any:
    return SecretResolver(parse_rules(rules), SecretCache(store, 60), **options)


def job(*references: SecretReference, **fields: Any) -> Job:
    return make_job(secrets=tuple((f"V{n}", reference) for n, reference in enumerate(references)), **fields)


def member(key: str) -> SecretReference:
    return SecretReference(JSON.service, JSON.name, key)


@pytest.fixture
def store() -> InMemorySecretStore:
    store = InMemorySecretStore()
    store.values[DB] = VALUE
    store.values[JSON] = '{"password": "p\\"w1", "port": 5432, "tls": true, "more": {}, "none": null}'
    return store


async def rejected(resolver: SecretResolver, job: Job) -> Rejected:
    with pytest.raises(Rejected) as caught:
        await resolver.resolve(job)
    rejection = caught.value
    assert rejection.error_type is ErrorType.INVALID_JOB
    assert rejection.hint is not None
    for text in (rejection.message, rejection.hint):
        assert HANGUL.search(text.ko)
        assert not HANGUL.search(text.en)
        assert VALUE not in f"{text.en} {text.ko}"
    return rejection


async def test_variables_get_values_and_members(store: InMemorySecretStore):
    resolved = await resolver(store).resolve(job(DB, JSON, *map(member, ("password", "port", "tls"))))
    assert resolved.environment == {
        "V0": VALUE,
        "V1": store.values[JSON],
        "V2": 'p"w1',
        "V3": "5432",
        "V4": "true",
    }
    assert resolved.mask.hide(f"{VALUE} 5432") == "*** ***"
    assert store.reads == [DB, JSON]
    assert VALUE not in repr(resolved)


async def test_without_rules_every_reference_is_refused_and_nothing_is_read(store: InMemorySecretStore):
    refused: list[None] = []
    rejection = await rejected(
        SecretResolver(on_refused=lambda: refused.append(None)), job(DB, function_id="shop")
    )
    assert rejection.message.en == (
        "env: V0 refers to the secret ssm:/prod/db, but this worker resolves no secrets "
        "(SECRETS_ALLOW is empty)"
    )
    assert "SECRETS_ALLOW, such as shop=ssm:/prod/db" in str(rejection.hint)
    assert len(refused) == 1
    assert store.reads == []


async def test_a_reference_that_no_rule_allows_stops_the_job_before_any_read(store: InMemorySecretStore):
    rejection = await rejected(
        resolver(store, "shop=ssm:/prod/db"), job(DB, JSON, member("password"), function_id="shop")
    )
    assert str(rejection.message).count("does not allow for the function shop") == 2
    assert "V0" not in str(rejection.message)
    assert store.reads == []


@pytest.mark.parametrize("function_id", ["*", "a b", "{functionId}", "x\n=ssm:**", "é", "a,*"])
async def test_a_hostile_id_is_shown_on_one_line_and_not_proposed_as_a_rule(
    function_id: str, store: InMemorySecretStore
):
    rejection = await rejected(resolver(store, "f=ssm:/a"), job(DB, function_id=function_id))
    assert "\n" not in str(rejection.message)
    assert "such as FUNCTION=ssm:/prod/db" in str(rejection.hint)


@pytest.mark.parametrize(
    ("absence", "action", "says", "remedy"),
    [
        (Absence.NAME, None, "does not exist", "Create it"),
        (Absence.DENIED, "ssm:GetParameter", "it lacks ssm:GetParameter", "allow ssm:GetParameter"),
        (Absence.KEY_UNUSABLE, None, "cannot decrypt", "allow kms:Decrypt"),
        (Absence.DELETED, None, "scheduled for deletion", "Restore it"),
        (Absence.BINARY, None, "is not a text", "Store a text"),
    ],
)
async def test_a_secret_that_cannot_be_used_is_explained(
    absence: Absence, action: str | None, says: str, remedy: str, store: InMemorySecretStore
):
    store.values[DB] = SecretMissing(f"log only {VALUE}", absence, action)
    rejection = await rejected(resolver(store), job(DB))
    assert "V0: " in str(rejection.message)
    assert says in str(rejection.message)
    assert remedy in str(rejection.hint)


@pytest.mark.parametrize("key", ["other", "more", "none"])
async def test_a_member_that_is_no_text_is_explained(key: str, store: InMemorySecretStore):
    rejection = await rejected(resolver(store), job(member(key)))
    assert f"secretsManager:prod/db (key {key}) is not a JSON object in which" in str(rejection.message)


@pytest.mark.parametrize("whole", [VALUE, "[1]", "", "[" * 100_000, '"text"'])
async def test_a_secret_that_is_no_json_object_has_no_members(whole: str, store: InMemorySecretStore):
    store.values[JSON] = whole
    assert "is not a JSON object" in str((await rejected(resolver(store), job(member("a")))).message)


async def test_a_value_with_a_nul_character_is_no_text(store: InMemorySecretStore):
    store.values[DB] = f"{VALUE}\0"
    assert "is not a text" in str((await rejected(resolver(store), job(DB))).message)


async def test_values_count_for_the_size_of_the_environment(store: InMemorySecretStore):
    store.values[DB] = "x" * 20_000
    resolved = await resolver(store).resolve(job(DB))
    assert len(resolved.environment["V0"]) == 20_000
    rejection = await rejected(resolver(store), job(DB, env=(("A", "y" * 20_000),)))
    assert "40003 bytes with the values of its secrets (V0); at most 32768" in str(rejection.message)


async def test_every_problem_is_named(store: InMemorySecretStore):
    store.values[DB] = SecretMissing("", Absence.NAME)
    rejection = await rejected(resolver(store), job(DB, member("other"), member("password")))
    assert [name in str(rejection.message) for name in ("V0", "V1", "V2")] == [True, True, False]


async def test_a_failure_of_the_service_is_the_platforms(store: InMemorySecretStore):
    store.values[DB] = SecretsError("throttled")
    with pytest.raises(SecretsError):
        await resolver(store).resolve(job(member("password"), DB))


async def test_a_refusal_is_never_remembered(store: InMemorySecretStore):
    assert not (await rejected(SecretResolver(), job(DB))).certain
