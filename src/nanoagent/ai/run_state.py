"""The state that all connections of one run share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanoagent.ai.bodies import RunMemory
    from nanoagent.ai.budgets import RunBudget
    from nanoagent.ai.cpu_time import CpuTimeLimit
    from nanoagent.ai.recording import Recording
    from nanoagent.network.base import NetworkRun


class CallOutcome(StrEnum):
    """The end of a call, as the metric `worker_llm_requests_total` counts it."""

    OK = "ok"
    ERROR = "error"
    CUT = "cut"
    """The answer is incomplete: the run ended, a limit was reached or the model server failed."""
    REFUSED = "refused"
    """The gateway returned an error and forwarded no call."""


@dataclass(frozen=True, slots=True)
class RunState:
    """The state that all connections of one run share.

    Attributes:
        run: The run.
        budget: The tokens, requests and bytes that it may still use.
        cpu_time: The limit of its CPU time.
        memory: The memory that its bodies take.
        recording: The recording of its calls; None without AI_RECORD.
    """

    run: NetworkRun
    budget: RunBudget
    cpu_time: CpuTimeLimit
    memory: RunMemory
    recording: Recording | None
