"""Parses the option `--env`."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from nanoagent.model.errors import InvalidCall

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,31}")  # not a password or a key


def parsed(pairs: Iterable[str]) -> dict[str, str]:
    """Parse the values of `--env`, each `NAME=VALUE`, or `NAME` for the value in this process's environment.

    Raises:
        InvalidCall: A value has no `=`, and is not the name of a variable of this process. The message shows
            it only if it has the usual form of a name, because it may be secret.
    """
    variables = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark and name in os.environ:
            value = os.environ[name]
        elif not mark and _NAME.fullmatch(name):
            raise InvalidCall([f"--env {name}: is not set in this environment; write {name}=VALUE"])
        elif not mark:
            raise InvalidCall([f"--env: a value of {len(pair)} characters has no =; write NAME=VALUE"])
        variables[name] = value
    return variables
