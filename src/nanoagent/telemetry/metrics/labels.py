"""Label values that users choose: runtimes and models. Both are bounded here."""

from __future__ import annotations

from typing import Final

from nanoagent.model.job import Runtime

MAX_MODELS: Final = 50
"""The number of `model` labels. With 4 runtimes and 20 buckets they make 4,000 series, few for one scrape."""

OTHER_MODEL: Final = "other"
"""The `model` label of all models whose names are not labels."""

_MAX_MODEL_LENGTH: Final = 64
_UNKNOWN_RUNTIME: Final = "unknown"
_RUNTIMES: Final = frozenset(str(runtime) for runtime in Runtime)


def runtime_label(runtime: str) -> str:
    """Return the `runtime` label: the runtime, or `unknown` for any other text of an invalid job."""
    return str(runtime) if runtime in _RUNTIMES else _UNKNOWN_RUNTIME


class ModelLabels:
    """The names of models that are labels."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def label(self, model: str) -> str:
        """Return the `model` label for a name that a user chose.

        The first `MAX_MODELS` names become labels, and stay labels. Later names are `other`. Blank names,
        names with unprintable characters, and names of more than 64 characters are `other`, too.
        """
        name = model.strip()
        if name in self._names:
            return name
        if not name or len(name) > _MAX_MODEL_LENGTH or not name.isprintable():
            return OTHER_MODEL
        if len(self._names) >= MAX_MODELS:
            return OTHER_MODEL
        self._names.add(name)
        return name

    def has(self, model: str) -> bool:
        """Return whether a name is a label already. This method does not make it a label."""
        return model.strip() in self._names
