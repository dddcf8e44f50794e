"""Asks whether the worker may read the secrets of its rules, for `nanoagent check`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from nanoagent.model.errors import SecretsError
from nanoagent.secrets.base import Absence, SecretMissing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.config.secret_rules import SecretRule
    from nanoagent.secrets.base import SecretStore

_MAX_RULES: Final = 20  # a request for each
_ADVICE: Final = "compare the worker's role with deploy/iam-policy-secrets.json"


async def warnings(rules: Sequence[SecretRule], store: SecretStore) -> tuple[str, ...]:
    """Return one sentence for each rule whose secrets cannot be read, of the first rules.

    For a rule with wildcards, a secret is asked for that probably does not exist. AWS answers that access is
    denied, if it is, before it looks for the secret.
    """
    found = await asyncio.gather(*(_warning(rule, store) for rule in rules[:_MAX_RULES]))
    return tuple(dict.fromkeys(warning for warning in found if warning is not None))


async def _warning(rule: SecretRule, store: SecretStore) -> str | None:
    try:
        await store.read(rule.example)
    except SecretMissing as missing:
        if missing.absence is Absence.NAME:
            return None if rule.is_pattern else f"the secret {rule.example} does not exist"
        advice = f"; {_ADVICE}" if missing.absence in {Absence.DENIED, Absence.KEY_UNUSABLE} else ""
        return f"{rule.example}: {missing.absence.value}{advice}"
    except SecretsError as failure:
        return str(failure)
    return None
