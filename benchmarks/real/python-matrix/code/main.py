import json
import os

import numpy as np

with open(os.environ["PAYLOAD_FILE"], encoding="utf-8") as source:
    event = json.load(source)

size = event["size"]
matrix = (np.arange(size * size, dtype=float).reshape(size, size) * 7919 % 101 - 50) / 10 + np.eye(size) * size
right = np.arange(size, dtype=float)
solution = np.linalg.solve(matrix, right)
product = matrix @ matrix.T
print(size, bool(np.allclose(matrix @ solution, right)), round(float(np.trace(product)), 2))
print(round(float(np.linalg.norm(product)), 2), bool((np.linalg.eigvalsh(product) > 0).all()))
