import json
import os

import yaml

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

def merged(below, above):
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {key: merged(below.get(key), above[key]) if key in above else below[key] for key in below | above}


services = "\n".join(
    f"  service-{at}:\n    port: {8000 + at}\n    replicas: {at % 4}\n    tags: [web, 'zone-{at % 3}']"
    for at in range(event["services"])
)
base = yaml.safe_load(f"defaults: &d {{cpu: 1, memory: 256}}\nlimits: {{<<: *d, cpu: 2}}\nservices:\n{services}\n")
settings = merged(base, yaml.safe_load(event["changes"]))
text = yaml.safe_dump(settings, sort_keys=True)
print(len(text), sum(service["replicas"] for service in settings["services"].values()))
print(text[:80].strip())
