"""The rules of SECRETS_ALLOW: which functions may use which secrets.

A rule is `FUNCTION=SERVICE:NAME`, for example `shop-*=ssm:/prod/shop/**`. In FUNCTION, `*` is any text.
NAME has segments, the parts between `/`. In a segment, `*` is any text without `/`. The last segment may be
`**`: one segment or more. A segment may be `{functionId}` or `{tenantId}`: the value of the job.

The sender of a job chooses the value. It is compared with one segment of the name, character by character, so
it cannot add segments or patterns to a rule. A placeholder that is only a part of a segment is refused: with
`/prod/{functionId}*`, the function `a` would get the secrets of the function `ab`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from nanoagent.model.secret import SecretReference, SecretService, is_name

_EXPECTED: Final = (
    "rules such as shop-*=ssm:/prod/shop/** or *=secretsManager:fn/{functionId}/*, separated by commas"
)
_FUNCTION_ID: Final = "{functionId}"
_TENANT_ID: Final = "{tenantId}"
_BELOW: Final = "**"
_VARIABLE: Final = re.compile(r"\{\w+\}|\*+")


@dataclass(frozen=True, slots=True)
class SecretRule:
    """One rule.

    Attributes:
        function: The pattern of the function's ID.
        service: The service that keeps the secrets.
        segments: The pattern of each segment of the secret's name.
    """

    function: str
    service: SecretService
    segments: tuple[str, ...]

    @property
    def is_pattern(self) -> bool:
        """Whether the rule is about several secrets."""
        return any(_VARIABLE.search(segment) for segment in self.segments)

    @property
    def example(self) -> SecretReference:
        """A secret that the rule allows; for a pattern, it probably does not exist."""
        name = "/".join(_VARIABLE.sub("nanoagent-probe", segment) for segment in self.segments)
        return SecretReference(self.service, name)

    def allows(self, reference: SecretReference, function_id: str, tenant_id: str | None) -> bool:
        """Whether the rule allows a function to use a secret.

        Args:
            reference: The secret. Its name is valid (`model.secret.is_name`).
            function_id: The job's `functionId`; any text.
            tenant_id: The job's `tenantId`; None if the job has none.
        """
        if reference.service is not self.service or not _matches(self.function, function_id):
            return False
        own = {_FUNCTION_ID: function_id, _TENANT_ID: tenant_id}
        patterns, names = self.segments, reference.name.split("/")
        if patterns[-1] == _BELOW:
            patterns = patterns[:-1]
            if len(names) <= len(patterns):
                return False
            names = names[: len(patterns)]
        return len(patterns) == len(names) and all(
            name == own[pattern] if pattern in own else _matches(pattern, name)
            for pattern, name in zip(patterns, names, strict=True)
        )


def parse_rules(text: str) -> tuple[SecretRule, ...]:
    """Parse the value of SECRETS_ALLOW.

    Raises:
        ValueError: A rule is wrong. The message is the expected value.
    """
    return tuple(_parse_rule(part.strip()) for part in text.split(",") if part.strip())


def _parse_rule(text: str) -> SecretRule:
    function, mark, secret = (part.strip() for part in text.partition("="))
    kind, colon, name = secret.partition(":")
    if not (mark and colon and function) or kind not in set(SecretService):
        raise ValueError(f"{_EXPECTED}; {text!r} is not one")
    service = SecretService(kind)
    if not function.isprintable() or set(function) & set(" {}"):
        raise ValueError(f"{_EXPECTED}; {function!r} has spaces or braces, but is a pattern of function IDs")
    segments = tuple(name.split("/"))
    for segment in segments:
        if "{" in segment and segment not in {_FUNCTION_ID, _TENANT_ID}:
            raise ValueError(
                f"{_EXPECTED}; {{functionId}} or {{tenantId}} must be a whole segment between two /,"
                f" unlike {segment!r}"
            )
    if _BELOW in name.removesuffix(f"/{_BELOW}") and name != _BELOW:
        raise ValueError(f"{_EXPECTED}; ** must be the last segment, unlike in {name!r}")
    if not is_name(service, _VARIABLE.sub("x", name)):
        raise ValueError(f"{_EXPECTED}; {name!r} cannot match the name of a secret of {service}")
    return SecretRule(function, service, segments)


def _matches(pattern: str, text: str) -> bool:
    """Whether a text matches a pattern, in which `*` is any text; in linear time, as texts are untrusted."""
    first, *others = pattern.split("*")
    if not others:
        return text == pattern
    *middle, last = others
    at = len(first)
    if not text.startswith(first):
        return False
    for part in middle:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(text) - at >= len(last) and text.endswith(last)
