import json
import os

from jsonschema import Draft202012Validator

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

validator = Draft202012Validator(event["schema"])
orders = [
    {"id": at if at % 4 else str(at), "items": [{"sku": f"A-{at}", "count": at % 3}] * (at % 5)}
    for at in range(event["orders"])
]
faults = {}
for order in orders:
    for fault in validator.iter_errors(order):
        faults[fault.validator] = faults.get(fault.validator, 0) + 1
print(json.dumps(faults, sort_keys=True))
