"""Writes golden.json: Fréchet and kernel distances by numpy and scipy.

Run with a Python that has scipy:  python3 golden.py
Features come from a 32-bit congruential generator that the Go test repeats, so
that only results are stored.
"""
import json
import numpy as np
from scipy import linalg


def features(n, d, seed, shift, decay):
    """n × d float32; column j has a scale that falls with j, and columns mix."""
    s, rows = seed, []
    for _ in range(n):
        row, last = [], 0.0
        for j in range(d):
            u = 0.0
            for _ in range(4):
                s = (s * 1664525 + 1013904223) % 2**32
                u += s / 2**32
            last = (u - 2.0) * decay**j + 0.5 * last + shift
            row.append(last)
        rows.append(row)
    return np.array(rows, dtype=np.float32).astype(np.float64)


def frechet(x, y):
    m1, m2 = x.mean(0), y.mean(0)
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(s1 @ s2)  # the formula of FID's implementations
    base = ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2)
    # The same trace by symmetric eigenvalues, for covariances without full rank,
    # where sqrtm loses digits.
    w, v = linalg.eigh(s1)
    h = (v * np.sqrt(np.clip(w, 0, None))) @ v.T
    e = linalg.eigvalsh(h @ s2 @ h)
    return base - 2 * np.trace(root.real), base - 2 * np.sqrt(np.clip(e, 0, None)).sum()


def kid(x, y):
    k = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    n, m = len(x), len(y)
    xx, yy = k(x, x), k(y, y)
    return (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * k(x, y).mean()


def cmmd(x, y):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    k = lambda a, b: np.exp(-((a[:, None, :] - b[None, :, :]) ** 2).sum(-1) / 200)
    return 1000 * (k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean())


cases = []
for name, n, m, d, shift, decay in [
    ("more images than features", 200, 150, 16, 0.05, 0.9),
    ("many more images than features", 400, 90, 12, 0.2, 0.8),
    ("fewer images than features", 40, 40, 64, 0.02, 0.97),
    ("far fewer images than features", 10, 25, 100, 0.1, 0.99),
    ("one set short of full rank", 300, 30, 48, 0.0, 0.95),
    ("features of very different scale", 120, 120, 40, 0.01, 0.7),
]:
    x, y = features(n, d, 1, 0.0, decay), features(m, d, 2, shift, decay * 0.99)
    fd_sqrtm, fd_eigh = frechet(x, y)
    cases.append(dict(name=name, n=n, m=m, d=d, shift=shift, decay=decay, fd_sqrtm=fd_sqrtm, fd=fd_eigh, kid=kid(x, y), cmmd=cmmd(x, y)))
json.dump(cases, open("golden.json", "w"), indent=1)
