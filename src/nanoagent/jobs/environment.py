"""The environment variables of a job's program (docs/contract.md, section 2), and the PATH of builds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from nanoagent.common import gateway_address
from nanoagent.common.units import MIB
from nanoagent.container.spec import RUN_USER
from nanoagent.languages.recipes import OUTPUT_DIR, PAYLOAD_FILE
from nanoagent.model.job import Runtime
from nanoagent.model.payload import fits_variable

if TYPE_CHECKING:
    from nanoagent.model.job import Job

PATH: Final = "/usr/local/bin:/usr/bin:/bin"
"""The value of PATH in every container."""

# Go does not know memoryMb. Without a limit, its heap may double between two garbage collections. In tests
# with 90 %, programs ran out of memory although their live data needed only half of it. The remaining 25 %
# are for stacks, code and files.
_GO_MEMORY_PERCENT: Final = 75


def environment_of(job: Job) -> dict[str, str]:
    """Return all environment variables of the job's program."""
    environment = {
        "PATH": PATH,
        "HOME": "/tmp",  # noqa: S108 - in the container
        "USER": RUN_USER,
        "LOGNAME": RUN_USER,
        "LANG": "C.UTF-8",
        "JOB_ID": job.request_id,
        "FUNCTION_ID": job.function_id,
        "OUTPUT_DIR": OUTPUT_DIR,
        "PAYLOAD_FILE": PAYLOAD_FILE,
        "MEMORY_LIMIT_MB": str(job.memory_mb),
        "DEADLINE_MS": str(int(time.time() * 1000) + job.timeout_ms),
        "LLM_MODEL": job.model_id,
        "AI_ENDPOINT": gateway_address.URL,
        "OLLAMA_HOST": gateway_address.URL,
        # Frameworks read the address of the AI gateway from these variables.
        "OLLAMA_BASE_URL": gateway_address.URL,
        "OLLAMA_API_BASE": gateway_address.URL,
        "OPENAI_BASE_URL": f"{gateway_address.URL}/v1",
        "OPENAI_API_BASE": f"{gateway_address.URL}/v1",
        "OPENAI_API_KEY": "unused",  # clients require a key; real keys stay in the worker
    }
    if job.runtime is Runtime.GO:
        environment["GOMEMLIMIT"] = f"{job.memory_mb * MIB * _GO_MEMORY_PERCENT // 100}"
    if fits_variable(job.payload):
        environment["PAYLOAD"] = job.payload.decode(errors="surrogateescape")
    if job.env:
        environment.update(job.env)
    return environment
