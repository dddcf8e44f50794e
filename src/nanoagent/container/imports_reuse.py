"""Decides whether a container is asked to import the packages of its code once, and notes the result.

For some code that is not possible (`ImportsState`). The attempt takes time, so it is not repeated for the
same code for a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from nanoagent.common.bounded_map import BoundedMap
from nanoagent.supervisor.wire import ImportsState

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanoagent.container.policy import Binding
    from nanoagent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_MAX_REMEMBERED: Final = 1024
# A state can depend on the load of the machine (`SLOW`) or on the memory limit (`ENDED`), so it is forgotten.
_REMEMBERED_S: Final = 600.0


class ImportsReuse:
    """The states of imports, by code and memory limit.

    Args:
        metrics: Counts the states of bindings.
        clock: Returns monotonic seconds.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._refused: BoundedMap[tuple[str, int], tuple[ImportsState, float]] = BoundedMap(_MAX_REMEMBERED)

    def refusal(self, binding: Binding) -> ImportsState:
        """Return the state that makes an attempt useless; `OFF` if the container is to try."""
        state, until = self._refused.get(_key_of(binding), (ImportsState.OFF, 0.0))
        return state if self._clock() < until else ImportsState.OFF

    def note(self, binding: Binding, state: ImportsState) -> None:
        """Note the state after a binding that asked for it."""
        self._metrics.containers.bound_with_imports(state.label)
        if state is ImportsState.REUSED:
            return
        log.info(
            "imports not reused", reason=state.label, function_id=binding.function_id, digest=binding.digest
        )
        if state.is_refusal:
            self._refused[_key_of(binding)] = state, self._clock() + _REMEMBERED_S


def _key_of(binding: Binding) -> tuple[str, int]:
    return binding.digest, binding.memory_mb
