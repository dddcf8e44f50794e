"""The collaborators of the runner and the builder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanoagent.jobs.failure_cache import FailureCache

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.code.object_cache import ObjectCache
    from nanoagent.code.program_cache import ProgramCache
    from nanoagent.config import Settings
    from nanoagent.container.pool import Pool
    from nanoagent.jobs.admission import Admission
    from nanoagent.jobs.byte_code import ByteCode
    from nanoagent.model.job import Runtime
    from nanoagent.network.listeners import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerParts:
    """The collaborators of the runner and the builder.

    Attributes:
        image_ids: Runtime → ID of its image, on which a built program depends.
        staging: The folder for output files until they are uploaded.
        failures: The failure cache.
        network: The network of runs; None: no network.
        byte_code: Byte code of Python code; None: each run compiles its modules.
        objects: Objects of earlier builds; None: each build compiles all of its code.
    """

    settings: Settings
    programs: ProgramCache
    admission: Admission
    pool: Pool
    image_ids: dict[Runtime, str]
    staging: Path
    failures: FailureCache = field(default_factory=FailureCache)
    network: Network | None = None
    byte_code: ByteCode | None = None
    objects: ObjectCache | None = None
