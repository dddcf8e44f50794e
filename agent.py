"""The entry that the contract names: `python agent.py` starts the worker, like `nanoagent run`.

It works in a checkout after `pip install -r requirements.txt`. The package need not be installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from nanoagent.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["run", *sys.argv[1:]]))
