"""Word statistics of a text. The input is the variable PAYLOAD."""

import collections
import csv
import json
import os
import re
from pathlib import Path

payload = json.loads(os.environ["PAYLOAD"])
text, top = payload["text"], payload.get("top", 10)

words = re.findall(r"[^\W\d_]+", text.casefold())
counts = collections.Counter(words)
longest = max(words, key=len, default="")

# The worker uploads the files in OUTPUT_DIR, also those in subfolders.
output = Path(os.environ["OUTPUT_DIR"])
(output / "tables").mkdir()
with (output / "tables" / "words.csv").open("w", encoding="utf-8", newline="") as file:
    table = csv.writer(file)
    table.writerow(["word", "count"])
    table.writerows(counts.most_common())

lines = ["# Word statistics", "", f"{len(words)} words, {len(counts)} different, the longest: {longest}", ""]
lines += [f"- {word}: {count}" for word, count in counts.most_common(top)]
(output / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

most_common = ", ".join(f"{word} ×{count}" for word, count in counts.most_common(3))
print(f"단어 {len(words)}개 · {len(counts)} different words · {most_common}")
