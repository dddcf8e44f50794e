"""Collects the facts about a run that has failed, or that has printed nothing, for its hint."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from nanoagent.code.tree_facts import tree_facts
from nanoagent.languages.explain import Facts, advice_for
from nanoagent.model import payload
from nanoagent.network.policy import AllowedHosts
from nanoagent.supervisor.wire import ExitFlag

if TYPE_CHECKING:
    from nanoagent.code.code_cache import CodeTree
    from nanoagent.config import Settings
    from nanoagent.container.execution import Execution
    from nanoagent.model.cause import Cause
    from nanoagent.model.job import Job
    from nanoagent.model.text import Text


def advice_of(
    job: Job, tree: CodeTree, ended: Execution, settings: Settings
) -> tuple[Cause | None, Text | None]:
    """Return the cause of a failure, and the advice. Both may be None. Reads the disk.

    Args:
        job: The job.
        tree: Its code.
        ended: A run that has failed, or that has printed nothing and written no file.
        settings: The settings of the worker.
    """
    collected = ended.collected
    return advice_for(
        Facts(
            runtime=job.runtime,
            error_type=ended.error_type,
            exit_code=ended.exit_code,
            message=str(ended.message),
            stdout_is_empty=not collected.stdout.head,
            stderr=collected.stderr.text,
            network=job.network,
            open_files=settings.max_open_files,
            memory_mb=job.memory_mb,
            timeout_ms=job.timeout_ms,
            files_bytes=None if ended.use is None else ended.use.files_bytes,
            is_listening=ExitFlag.LISTENING in ended.flags,
            was_computing=ExitFlag.COMPUTING in ended.flags,
            was_waiting=ExitFlag.WAITING in ended.flags,
            payload_bytes=len(job.payload),
            payload_fits=payload.fits_variable(job.payload),
            machine=platform.machine(),
            hosts=AllowedHosts(settings.egress_allow),
            tree=tree_facts(tree.path, job.runtime),
        )
    )
