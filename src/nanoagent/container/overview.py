"""The state of the pool as a JSON document, for `/pool` of the status server and `nanoagent pool`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanoagent.common.units import MIB
from nanoagent.container.charges import OVERHEAD_BYTES
from nanoagent.model.job import Runtime
from nanoagent.model.result import Start

if TYPE_CHECKING:
    from nanoagent.container.policy import PooledContainer
    from nanoagent.container.pool_context import PoolContext
    from nanoagent.container.totals import RetiredContainer


def overview(context: PoolContext, starting: dict[Runtime, int]) -> dict[str, Any]:
    """Return the state of the pool.

    The document has no names of functions, because every client of the status server can read it.

    Args:
        context: The state that the parts of the pool share.
        starting: Runtime → number of creations under way.
    """
    budget, containers = context.budget, context.inventory.all()
    measured = [held for pooled in containers if (held := _held_bytes(pooled)) is not None]
    return {
        "memoryMb": {
            "limit": budget.limit_mb,
            "charged": budget.committed_mb,
            "held": round(sum(measured) / MIB, 1) if len(measured) == len(containers) else None,
            "wanted": budget.wanted_mb,
        },
        "containers": {
            "limit": budget.most_containers,
            "running": budget.running,
            "creating": budget.creating,
            "removing": budget.removing,
        },
        "runtimes": {str(runtime): _of_runtime(context, runtime, starting[runtime]) for runtime in Runtime},
    }


def _of_runtime(context: PoolContext, runtime: Runtime, starting: int) -> dict[str, Any]:
    totals, idle = context.totals, context.inventory.idle(runtime)
    starts = totals.starts[runtime]
    total = starts.total()
    now = context.clock()
    return {
        "hot": len(idle) - len(idle.generic),
        "generic": len(idle.generic),
        "genericWanted": context.wanted.number(runtime),
        "busy": context.inventory.busy(runtime),
        "starting": starting,
        "starts": {start.value: starts[start] for start in Start},
        "coldShare": round(starts[Start.COLD] / total, 4) if total else None,
        "rebound": totals.rebinds[runtime],
        "recycled": totals.recycled[runtime],
        "notRecycled": dict(sorted(totals.recycling_failures[runtime].items())),
        "retired": dict(sorted(totals.retirements[runtime].items())),
        "lastRetired": [_of_retired(retired, now) for retired in reversed(totals.last_retired[runtime])],
    }


def _of_retired(retired: RetiredContainer, now: float) -> dict[str, Any]:
    return {
        "reason": retired.reason,
        "secondsAgo": round(now - retired.at, 1),
        "idleSeconds": round(retired.idle_s, 1),
        "runs": retired.runs,
        "memoryMb": retired.memory_mb,
    }


def _held_bytes(pooled: PooledContainer) -> int | None:
    """Return the memory of a container now, with its overhead; None if it cannot be read."""
    group = pooled.container.group
    try:
        return None if group is None else group.held_bytes() + OVERHEAD_BYTES
    except OSError:  # it has just died
        return 0
