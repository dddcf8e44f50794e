"""Parses the option `--env`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.model.errors import InvalidCall

if TYPE_CHECKING:
    from collections.abc import Iterable


def parsed(pairs: Iterable[str]) -> dict[str, str]:
    """Parse the values of `--env`, each `NAME=VALUE`.

    Raises:
        InvalidCall: A value has no `=`. The message shows only its length, because it may be secret.
    """
    variables = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark:
            raise InvalidCall([f"--env: a value of {len(pair)} characters has no =; write NAME=VALUE"])
        variables[name] = value
    return variables
