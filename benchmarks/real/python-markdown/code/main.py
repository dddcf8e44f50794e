import hashlib
import json
import os

import markdown

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

chapter = """
## {title} {number}

Some *emphasis*, some **weight**, and a [link](https://example.org/{number}).

| key | value |
| --- | ----- |
| a   | {number} |

```
code = {number}
```

1. first
2. second
"""
titles = event["titles"]
text = "# Handbook\n\n[TOC]\n" + "".join(
    chapter.format(title=titles[at % len(titles)], number=at) for at in range(event["chapters"])
)
html = markdown.markdown(text, extensions=["tables", "fenced_code", "toc"])
print(html.count("<h2"), html.count("<table>"), html.count("<li>"), hashlib.sha256(html.encode()).hexdigest()[:16])
