import io
import json
import os

import pandas as pd

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

rows = ["day,region,units,price"]
for at in range(event["rows"]):
    region = event["regions"][at * 7 // 5 % len(event["regions"])]
    rows.append(f"2024-{at % 12 + 1:02}-{at % 28 + 1:02},{region},{at * 31 % 17 + 1},{at * 13 % 400 / 4}")

sales = pd.read_csv(io.StringIO("\n".join(rows)), parse_dates=["day"])
sales["total"] = sales["units"] * sales["price"]
by_month = sales.pivot_table(
    index=sales["day"].dt.month, columns="region", values="total", aggfunc="sum", fill_value=0
)
print(by_month.round(2).to_csv(), end="")
