import collections
import json
import os
import re

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

LINE = re.compile(
    r'(?P<host>\d+\.\d+\.\d+\.\d+) - - \[(?P<day>[^:]+):(?P<hour>\d\d)[^\]]*\] '
    r'"(?P<verb>[A-Z]+) (?P<path>[^ ?"]+)[^"]*" (?P<status>\d{3}) (?P<size>\d+) (?P<ms>\d+)'
)
log = [
    f'10.0.{at % 7}.{at % 250} - - [02/Jan/2024:{at % 24:02}:10:00 +0000] '
    f'"{"GET" if at % 3 else "POST"} /{event["pages"][at * 5 % len(event["pages"])]}?q={at} HTTP/1.1" '
    f'{event["statuses"][at * 11 % len(event["statuses"])]} {at * 37 % 9000} {at * 101 % 1900}'
    for at in range(event["lines"])
]
failed, slow, hours, unread = collections.Counter(), collections.Counter(), collections.Counter(), 0
for line in log:
    found = LINE.match(line)
    if found is None:
        unread += 1
        continue
    failed[found["path"]] += found["status"] >= "500"
    slow[found["path"]] += int(found["ms"]) > 1500
    hours[found["hour"]] += 1
print(sorted(failed.items()), sorted(slow.items()), sep="\n")
print(min(hours.values()), max(hours.values()), unread)
