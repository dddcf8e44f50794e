"""Greets a person. The input is JSON on standard input."""

import json
import os
import sys
from pathlib import Path

name = json.load(sys.stdin)["name"]

print(f"Hello {name}!")

# Files in OUTPUT_DIR are the output files of the run.
(Path(os.environ["OUTPUT_DIR"]) / "greeting.txt").write_text(f"Hello {name}!\n", encoding="utf-8")
