from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nanoagent.container.imports_reuse import ImportsReuse
from nanoagent.container.policy import Binding
from nanoagent.model.job import Runtime
from nanoagent.supervisor.wire import ImportsState
from nanoagent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def a_binding(digest: str = "a", memory_mb: int = 128) -> Binding:
    return Binding(
        runtime=Runtime.PYTHON,
        function_id="f",
        digest=digest,
        memory_mb=memory_mb,
        cpus=1,
        most_cpus=1,
        tree=Path("/code"),
        tree_bytes=0,
        reuses_imports=True,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reuse(clock: Callable[[], float]) -> ImportsReuse:
    return ImportsReuse(Metrics(), clock)


@pytest.mark.parametrize("state", [state for state in ImportsState if state.is_refusal])
def test_code_that_was_refused_is_not_tried_again_for_a_while(reuse, clock, state):
    reuse.note(a_binding(), state)
    assert reuse.refusal(a_binding()) is state
    assert reuse.refusal(a_binding(digest="b")) is ImportsState.OFF
    assert reuse.refusal(a_binding(memory_mb=256)) is ImportsState.OFF
    clock.now += 601
    assert reuse.refusal(a_binding()) is ImportsState.OFF


@pytest.mark.parametrize("state", [ImportsState.REUSED, ImportsState.UNAVAILABLE])
def test_other_states_are_tried_again(reuse, state):
    reuse.note(a_binding(), state)
    assert reuse.refusal(a_binding()) is ImportsState.OFF


def test_each_state_is_counted(clock):
    metrics = Metrics()
    reuse = ImportsReuse(metrics, clock)
    for state in (ImportsState.REUSED, ImportsState.REUSED, ImportsState.PRINTED):
        reuse.note(a_binding(), state)
    counted = {
        label: metrics.registry.get_sample_value("worker_imports_reuse_total", {"state": label})
        for label in ("reused", "printed", "slow")
    }
    assert counted == {"reused": 2, "printed": 1, "slow": None}


def test_a_binding_that_reuses_imports_has_another_key():
    reusing = a_binding()
    plain = replace(reusing, reuses_imports=False)
    assert not plain.key.serves(reusing.key)
    assert not reusing.key.serves(plain.key)
    assert reusing.key.serves(a_binding().key)
