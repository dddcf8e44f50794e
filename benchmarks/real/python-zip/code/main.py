import hashlib
import io
import json
import os
import zipfile
import zlib

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

buffer = io.BytesIO()
with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=event["level"]) as archive:
    for number in range(event["files"]):
        lines = (f"{number};{row};{(number * 7919 + row * 104729) % 99991}\n" for row in range(event["rows"]))
        archive.writestr(zipfile.ZipInfo(f"reports/{number:03}.csv"), "".join(lines))

with zipfile.ZipFile(buffer) as archive:
    assert archive.testzip() is None
    names = archive.namelist()
    content = b"".join(archive.read(name) for name in names)
print(len(names), len(content), zlib.crc32(content), hashlib.sha256(content).hexdigest()[:16])
