"""The published entry: `python agent.py` starts the worker, as `nanoagent run` does.

Works from a checkout after `pip install -r requirements.txt`; the package need not be installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from nanoagent.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["run", *sys.argv[1:]]))
