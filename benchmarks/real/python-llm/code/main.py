import json
import os

import ai_client

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

labels = ", ".join(event["labels"])
for message in event["messages"]:
    answer = ai_client.generate(f"Choose one of {labels}: {message}")
    print(answer.replace("\n", " "))
