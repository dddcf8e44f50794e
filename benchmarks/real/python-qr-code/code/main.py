import hashlib
import io
import json
import os

import segno

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

code = segno.make(event["url"], error=event["error"])
drawing = io.BytesIO()
code.save(drawing, kind="svg", scale=4, dark=event["dark"])
print(code.designator, code.symbol_size(), hashlib.sha256(drawing.getvalue()).hexdigest()[:16])
print(drawing.getvalue().decode()[-60:].strip())
