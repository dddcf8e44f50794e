import json
import os

import numpy as np
import pandas as pd

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

frame = pd.DataFrame({"amount": np.arange(event["least"])})
print(int(frame["amount"].sum()))
