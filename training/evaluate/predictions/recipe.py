"""What to do with the tables that nearmiss writes, in a notebook.

    nearmiss eval --data DIR --protocol mvtec --backbone FILE.onnx --predictions eval.parquet
    nearmiss score --release DIR images/ --out today.parquet

pandas reads both; .csv and .jsonl (pd.read_json(file, lines=True)) have the same
columns. python3 recipe.py FILE prints what is below.
"""

import json
import sys

import pandas as pd

name = sys.argv[1]
if name.endswith(".parquet"):
    table = pd.read_parquet(name)
elif name.endswith(".jsonl"):
    table = pd.read_json(name, lines=True)
else:
    table = pd.read_csv(name)
    for column in ("parts", "regions"):  # JSON in CSV
        table[column] = table[column].map(lambda s: json.loads(s) if isinstance(s, str) else [])

# AUROC: the chance that an anomaly scores higher than a normal image, ties half.
truth = table["truth"].astype(bool)
ranks = table["score"].rank()
n, m = (~truth).sum(), truth.sum()
auroc = (ranks[truth].sum() - m * (m + 1) / 2) / (n * m)

# The worst misses: anomalies that look most normal.
misses = table[truth].sort_values("score").head(5)[["path", "label", "score", "p"]]

# Each defect against the normal images.
mean = table.groupby("label")["score"].agg(["count", "median", "max"])

print(json.dumps({"auroc": auroc, "rows": len(table), "regions": int(table["regions"].map(len).sum())}))
print(misses, mean, sep="\n\n", file=sys.stderr)
