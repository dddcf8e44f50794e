"""A worker with few file descriptors; the environment has the limit."""

from __future__ import annotations

import os
import resource
from typing import Final

from nanoagent.cli import main

DESCRIPTORS: Final = "TEST_DESCRIPTORS"

if __name__ == "__main__":
    most = int(os.environ[DESCRIPTORS])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most // 2, most))
    main()
