"""Finds the values of the secrets that a job refers to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from nanoagent.model import variables
from nanoagent.secrets import explanations
from nanoagent.secrets.base import Absence, SecretMissing
from nanoagent.secrets.masking import Mask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nanoagent.config.secret_rules import SecretRule
    from nanoagent.model.job import Job
    from nanoagent.model.secret import SecretReference
    from nanoagent.secrets.cache import SecretCache

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ResolvedSecrets:
    """The secrets of one job.

    Attributes:
        environment: The variables with their values.
        mask: Hides the values in the output of the program.
    """

    environment: dict[str, str] = field(repr=False)
    mask: Mask = field(repr=False)


class SecretResolver:
    """Finds the values of the secrets that jobs refer to, as far as the rules allow it.

    Args:
        rules: The rules of SECRETS_ALLOW. A reference that no rule allows is refused.
        cache: Reads the secrets; None if there are no rules.
        on_refused: Called for each refused reference.
    """

    def __init__(
        self,
        rules: Sequence[SecretRule] = (),
        cache: SecretCache | None = None,
        *,
        on_refused: Callable[[], None] = lambda: None,
    ) -> None:
        self._rules = tuple(rules)
        self._cache = cache
        self._on_refused = on_refused

    async def resolve(self, job: Job) -> ResolvedSecrets:
        """Return the values of a job's secrets.

        Raises:
            Rejected: The rules do not allow a reference, or a secret cannot be used. The message has every
                problem, and no value.
            SecretsError: The service failed. Another attempt may succeed.
        """
        problems = [
            explanations.not_allowed(name, reference, job.function_id, turned_off=not self._rules)
            for name, reference in job.secrets
            if not self._is_allowed(job, reference)
        ]
        if problems or self._cache is None:
            for _ in problems:
                self._on_refused()
            raise explanations.rejection(problems)
        answers = await asyncio.gather(
            *(self._value(self._cache, reference) for _, reference in job.secrets), return_exceptions=True
        )
        return _resolved(job, answers)

    def _is_allowed(self, job: Job, reference: SecretReference) -> bool:
        return any(rule.allows(reference, job.function_id, job.tenant_id) for rule in self._rules)

    @staticmethod
    async def _value(cache: SecretCache, reference: SecretReference) -> str:
        whole = await cache.read(reference)
        value = whole if reference.key is None else _member(whole, reference.key)
        if value is None:
            raise SecretMissing(f"read {reference}: it has no such member", Absence.MEMBER)
        if not variables.is_text(value):
            raise SecretMissing(f"read {reference}: it has a NUL character", Absence.BINARY)
        return value


def _resolved(job: Job, answers: Sequence[str | BaseException]) -> ResolvedSecrets:
    """Return the values of a job, or raise the exception for all answers that are not values."""
    problems = []
    environment = {}
    for (name, reference), answer in zip(job.secrets, answers, strict=True):
        if isinstance(answer, SecretMissing):
            log.warning("secret not usable", variable=name, reference=str(reference), reason=str(answer))
            problems.append(explanations.missing(name, reference, answer))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            environment[name] = answer
    if not problems and (size := variables.size_bytes(dict(job.env) | environment)) > variables.MAX_BYTES:
        problems.append(explanations.too_large([name for name, _ in job.secrets], size))
    if problems:
        raise explanations.rejection(problems)
    return ResolvedSecrets(environment, Mask(environment.values()))


def _member(whole: str, key: str) -> str | None:
    """Return a member of a JSON object as a text; None if it does not exist, or is an array or an object."""
    try:
        parsed = json.loads(whole)
    except (ValueError, RecursionError):
        return None
    value = parsed.get(key) if isinstance(parsed, dict) else None
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (bool, int, float)) else None
