"""What `nanoagent check` says about the secrets of the rules."""

from __future__ import annotations

import pytest

from nanoagent.config.secret_rules import parse_rules
from nanoagent.model.errors import SecretsError
from nanoagent.model.secret import SecretReference, SecretService
from nanoagent.secrets import probe
from nanoagent.secrets.base import Absence, SecretMissing
from nanoagent.secrets.memory import InMemorySecretStore

RULES = "*=ssm:/fn/{functionId}/**,shop=secretsManager:prod/a*,shop=ssm:/db"
NAMES = [
    SecretReference(SecretService.SSM, "/fn/nanoagent-probe/nanoagent-probe"),
    SecretReference(SecretService.SECRETS_MANAGER, "prod/ananoagent-probe"),
    SecretReference(SecretService.SSM, "/db"),
]


async def test_one_secret_of_each_rule_is_asked_for_and_the_rule_allows_it():
    store = InMemorySecretStore()
    store.values[NAMES[2]] = "hunter22"
    assert await probe.warnings(parse_rules(RULES), store) == ()
    assert store.reads == NAMES
    for rule, name in zip(parse_rules(RULES), NAMES, strict=True):
        assert rule.allows(name, "nanoagent-probe" if "{" in str(rule) else "shop", None)


async def test_a_secret_that_is_named_must_exist():
    found = await probe.warnings(parse_rules(RULES), InMemorySecretStore())
    assert found == ("the secret ssm:/db does not exist",)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            SecretMissing("", Absence.DENIED, "ssm:GetParameter"),
            "ssm:/db: access is denied; compare the worker's role with deploy/iam-policy-secrets.json",
        ),
        (SecretMissing("", Absence.DELETED), "ssm:/db: it is scheduled for deletion"),
        (SecretsError("read ssm:/db: it does not answer"), "read ssm:/db: it does not answer"),
    ],
)
async def test_a_failure_is_a_warning_with_the_remedy(error: Exception, says: str):
    store = InMemorySecretStore()
    store.values[NAMES[2]] = error
    assert await probe.warnings(parse_rules("a=ssm:/db,b=ssm:/db"), store) == (says,)
