"""The AI gateway: serves HTTP on the connections of runs, and forwards their calls to model servers.

`Gateway` creates one `RunState` for each run and one `Connection` for each connection. It does not forward
the headers, path and query of a request. A hostile program can harm only its own run. The caller limits its
connections, and the settings limit its requests, bytes and time. `CpuTimeLimit` limits its CPU time, and
`BodyMemory` limits its memory.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from nanoagent.ai.bodies import BodyMemory, RunMemory
from nanoagent.ai.budgets import FunctionBudgets, RunBudget
from nanoagent.ai.connection import Connection
from nanoagent.ai.cpu_time import CpuTimeLimit
from nanoagent.ai.recording import Recording
from nanoagent.ai.run_state import RunState
from nanoagent.ai.shared import ServerLog, Shared
from nanoagent.common.units import MIB

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from nanoagent.ai.limits import GatewayLimits
    from nanoagent.ai.upstreams import Upstreams
    from nanoagent.network.base import NetworkRun
    from nanoagent.telemetry.metrics import Metrics

_BODY_MEMORY_BYTES: Final = 128 * MIB  # a forwarded body takes about twice its size


class Gateway:
    """Serves the connections of all runs. Implements `network.base.Gateway`.

    Args:
        servers: The model servers.
        limits: The limits from the settings.
        metrics: The metrics of the worker.
        now: The clock for the budgets of functions and for the log, in seconds.

    Attributes:
        shared: The objects and the state that all runs share.
    """

    def __init__(
        self,
        servers: Upstreams,
        limits: GatewayLimits,
        metrics: Metrics,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shared = Shared(
            servers=servers,
            limits=limits,
            metrics=metrics,
            memory=BodyMemory(_BODY_MEMORY_BYTES),
            functions=FunctionBudgets(limits.function_tokens_per_minute, now),
            server_log=ServerLog(now),
        )

    async def serve(self, connection: socket.socket, run: NetworkRun) -> None:
        """See `network.base.Gateway`."""
        await Connection(self.shared, self.state_of(run)).serve(connection)

    def state_of(self, run: NetworkRun) -> RunState:
        """Return the state of a run. It is created with the first connection."""
        if not isinstance(run.gateway_state, RunState):
            run.gateway_state = RunState(
                run=run,
                budget=RunBudget(self.shared.limits.run, self.shared.functions.get(run.function_id)),
                cpu_time=CpuTimeLimit(asyncio.get_running_loop().time),
                memory=RunMemory(self.shared.memory),
                recording=None if run.record is None else Recording(run.record),
            )
        return run.gateway_state
