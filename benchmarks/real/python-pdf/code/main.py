import datetime as dt
import io
import json
import os

from fpdf import FPDF

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

pdf = FPDF()
pdf.set_creation_date(dt.datetime(2024, 1, 2, tzinfo=dt.timezone.utc))
pdf.set_compression(False)
pdf.add_page()
pdf.set_font("Helvetica", "B", 16)
pdf.cell(0, 10, f"Invoice {event['number']}", new_x="LMARGIN", new_y="NEXT")
pdf.set_font("Helvetica", size=10)
for at in range(event["lines"]):
    pdf.cell(120, 6, f"{at + 1}. {event['goods'][at % len(event['goods'])]}", border="B")
    pdf.cell(0, 6, f"{at * 3.5:.2f}", border="B", align="R", new_x="LMARGIN", new_y="NEXT")
content = bytes(pdf.output())
print(content[:8].decode(), pdf.pages_count, content.count(b"Tj"), b"Invoice 77" in content)
