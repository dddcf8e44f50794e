import json
import os

import jwt

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

accepted, refused = 0, 0
for user in range(event["users"]):
    claims = {"sub": f"user-{user}", "scope": event["scopes"], "iat": 1_700_000_000, "exp": 4_000_000_000}
    token = jwt.encode(claims, event["key"], algorithm="HS256")
    sent = token if user % 5 else token[:-2]
    try:
        accepted += jwt.decode(sent, event["key"], algorithms=["HS256"])["sub"] == f"user-{user}"
    except jwt.InvalidTokenError:
        refused += 1
print("accepted", accepted, "refused", refused, token[-12:])
