"""Sums up notes of customers with a language model. The worker forwards the calls and adds the key."""

import json
import os
import sys
from pathlib import Path

import ai_client  # part of the image

payload = json.loads(os.environ["PAYLOAD"])
notes = "\n".join(f"- {note}" for note in payload["notes"])

try:
    # The whole answer at once, from the model of the job (modelId).
    summary = ai_client.generate(f"Sum up in one sentence:\n{notes}", temperature=0)

    # A stream: each piece as soon as the model has written it.
    conversation = [
        {"role": "system", "content": "You answer customers, in Korean, in three sentences at most."},
        {"role": "user", "content": payload["notes"][0]},
    ]
    letter = ""
    for piece in ai_client.chat_stream(conversation, num_predict=200):
        print(piece, end="", flush=True)
        letter += piece
    print()
except ai_client.AIError as exc:
    # The message names the remedy, for example a limit and its setting. The exit code makes the result FAILED.
    sys.exit(f"the call to the model failed: {exc}")

# The worker uploads the files in OUTPUT_DIR.
report = f"# Summary\n\n{summary}\n\n# Answer\n\n{letter}\n"
(Path(os.environ["OUTPUT_DIR"]) / "summary.md").write_text(report, encoding="utf-8")
