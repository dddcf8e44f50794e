"""What customers wrote, summed up by a language model: the model is reached through the worker, without a key."""

import json
import os
import sys
from pathlib import Path

import ai_client  # there in every run

payload = json.loads(os.environ["PAYLOAD"])
notes = "\n".join(f"- {note}" for note in payload["notes"])

try:
    # In one piece, from the model that the job names (modelId).
    summary = ai_client.generate(f"Sum up in one sentence:\n{notes}", temperature=0)

    # Piece by piece, as the model writes.
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
    # Says what to do about it: a limit and its setting, say. The exit code makes the result FAILED.
    sys.exit(f"the model could not be asked: {exc}")

# What is left in OUTPUT_DIR is uploaded.
report = f"# Summary\n\n{summary}\n\n# Answer\n\n{letter}\n"
(Path(os.environ["OUTPUT_DIR"]) / "summary.md").write_text(report, encoding="utf-8")
