#!/usr/bin/env python3
"""Writes golden.json: figures computed with numpy and scipy, by other ways than the Go code.

Run it in this folder: python3 make_goldens.py
"""
import json

import numpy as np
from scipy import ndimage, stats

rng = np.random.default_rng(5)


def average_precision(normal, anomalous):
    scores = np.r_[normal, anomalous]
    truth = np.r_[np.zeros(len(normal)), np.ones(len(anomalous))]
    total, last = 0.0, 0.0
    for t in np.unique(scores)[::-1]:
        found = scores >= t
        recall = truth[found].sum() / truth.sum()
        total += (recall - last) * truth[found].mean()
        last = recall
    return total


def fpr_at(normal, anomalous, tpr):
    for t in np.unique(np.r_[normal, anomalous])[::-1]:
        if (anomalous >= t).mean() >= tpr:
            return (normal >= t).mean()


cases = []
for n, m, digits in (30, 20, 1), (200, 50, 3), (7, 90, 0), (64, 64, 6):
    a = np.round(rng.normal(0, 1, n), digits)
    b = np.round(rng.normal(0.8, 1.5, m), digits)
    u = stats.mannwhitneyu(b, a, alternative="two-sided").statistic
    cases.append({
        "normal": a.tolist(), "anomalous": b.tolist(), "auroc": u / (n * m),
        "average_precision": average_precision(a, b), "fpr95": float(fpr_at(a, b, 0.95)),
    })

images, normal, overlap = [], [], []
regions = 0
for w, h in (23, 17), (16, 16), (20, 9), (12, 12):
    mask = np.zeros((h, w), np.uint8)
    if (w, h) != (12, 12):
        for _ in range(4):
            y, x = rng.integers(0, h - 3), rng.integers(0, w - 3)
            mask[y:y + rng.integers(1, 5), x:x + rng.integers(1, 5)] = 255
    s = np.round(rng.normal(0, 1, (h, w)) + 1.2 * (mask > 0) * rng.random((h, w)), 2).astype(np.float32)
    images.append({"scores": [float(v) for v in s.ravel()], "mask": None, "width": w, "height": h})
    label, n = ndimage.label(mask, structure=np.ones((3, 3)))
    if n:
        # encoding/json reads []uint8 as base64
        import base64
        images[-1]["mask"] = base64.b64encode(mask.tobytes()).decode()
    regions += n
    normal.append(s[mask == 0])
    overlap += [s[label == k] for k in range(1, n + 1)]
normal = np.concatenate(normal)
marked = np.concatenate(overlap)
u = stats.mannwhitneyu(marked.astype(np.float64), normal.astype(np.float64), alternative="two-sided").statistic
fpr, pro = [0.0], [0.0]
for t in np.unique(np.r_[normal, marked])[::-1]:
    fpr.append((normal >= t).mean())
    pro.append(np.mean([(r >= t).mean() for r in overlap]))
fpr, pro = np.array(fpr), np.array(pro)
limit = 0.3
inside = fpr < limit
at = np.interp(limit, fpr, pro)
# the curve may rise straight up: interpolate on the last step that crosses the limit
k = np.argmax(fpr >= limit)
at = pro[k - 1] + (pro[k] - pro[k - 1]) * (limit - fpr[k - 1]) / (fpr[k] - fpr[k - 1])
area = np.trapz(np.r_[pro[inside], at], np.r_[fpr[inside], limit]) / limit

with open("golden.json", "w") as f:
    json.dump({
        "cases": cases,
        "pixels": {"images": images, "auroc": u / (len(normal) * len(marked)), "pro": area, "regions": regions},
    }, f)
    f.write("\n")
