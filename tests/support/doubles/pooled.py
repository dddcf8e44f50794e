"""Containers of the pool, without real containers."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from nanoagent.container.policy import BindingKey, PooledContainer
from nanoagent.model.job import FunctionVersion, Runtime

if TYPE_CHECKING:
    from nanoagent.container.base import RunningContainer

KEY: Final = BindingKey("run", FunctionVersion("f", Runtime.PYTHON, "digest", 128))
_NUMBERS: Final = itertools.count()


def pooled(
    *,
    key: BindingKey | None = KEY,
    memory_mb: int = 128,
    usable: bool = True,
    runtime: Runtime = Runtime.PYTHON,
    held_bytes: int = 0,
    recyclable: bool = False,
    **fields: Any,
) -> PooledContainer:
    """Return a container that is bound to a function version, unless `key` is None.

    Args:
        key: The key of its binding.
        memory_mb: Its part of the budget.
        usable: Whether its session is usable.
        runtime: Its language.
        held_bytes: The memory that it holds.
        recyclable: Whether it can be recycled.
        fields: Further fields of `PooledContainer`.
    """
    container = SimpleNamespace(
        id=f"container-{next(_NUMBERS)}",
        session=SimpleNamespace(is_usable=usable),
        spec=SimpleNamespace(runtime=runtime),
        group=None,
        created_ms=0.0,
        can_be_recycled=recyclable,
        base_bytes=0,
        held_bytes=held_bytes,
    )
    times = {"made_at": 0.0, "used_at": 0.0}
    return PooledContainer(cast("RunningContainer", container), memory_mb, key=key, **(times | fields))
