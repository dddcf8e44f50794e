"""`python -m support.agents.experienced_agent`: a worker that knows the run times of some functions.

Otherwise it would learn them from hours of runs. The variable KNOWN has them: function → seconds.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

from nanoagent import cli
from nanoagent.worker.durations import SAMPLES, Durations

if TYPE_CHECKING:
    from nanoagent.model.job import Job

KNOWN: Final = "KNOWN_DURATIONS"


def main() -> None:
    known: dict[str, float] = json.loads(os.environ[KNOWN])
    learnt = Durations.of

    def of(self: Durations, job: Job) -> tuple[float, ...]:
        if job.function_id in known:
            return (known[job.function_id],) * SAMPLES
        return learnt(self, job)

    Durations.of = of  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
