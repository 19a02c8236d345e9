"""Measures PyTorch, faiss and hnswlib beside nearmiss, in one run, and prints ratios.

`make versus` installs the peers and runs this. Everything is measured on one thread, in
turns, by processor time, which a busy machine disturbs less than the clock. A peer that
is not installed has no row. Random weights: they are as fast as trained ones.
"""

import argparse
import datetime
import importlib.util
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

SIZE, BANK = 224, 3000  # pixels of the network's input, patches in a bank


def pictures(folder, n=60):
    """JPEG files of 256 × 256 pixels: soft noise."""
    folder.mkdir(parents=True, exist_ok=True)
    r = np.random.default_rng(1)
    for i in range(n):
        small = Image.fromarray(r.integers(60, 200, (16, 16, 3), dtype=np.uint8))
        small.resize((256, 256), Image.BICUBIC).save(folder / f"{i:03}.jpg", quality=90)
    return folder


def cpu_of(work, least=1.0):
    """Processor seconds of a call, the mean over a second or more."""
    work()
    began, runs = time.process_time(), 0
    while time.process_time() - began < least:
        work()
        runs += 1
    return (time.process_time() - began) / runs


class Program:
    def __init__(self, path, folder):
        self.path, self.folder = path, folder

    def __call__(self, *args):
        done = subprocess.run([self.path, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"nearmiss {' '.join(map(str, args))}:\n{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def backbone(self, arch):
        out = self.folder / f"{arch}.onnx"
        if not out.exists():
            self("backbone", "random", "--arch", arch, "--out", out, "--json")
        return out

    def forward(self, arch, batch, precision, pics):
        r = self("bench", "embed", "--backbone", self.backbone(arch), "--images", pics, "--threads", 1,
                 "--batch", batch, "--precision", precision, "--time", "3s", "--alone", "--json")[0]
        rates = [x["images_per_cpu_second"] for x in r["raw"] if x["batch"] == (1 if precision == "int8" else batch)]
        return 1 / max(rates)

    def release(self, precision, pics):
        out = self.folder / f"release-{precision}"
        if not out.exists():
            self("fit", "--normals", pics, "--backbone", self.backbone("tiny"), "--out", out, "--seed", 1, "--exposure", "usual",
                 "--frame", "all", "--threads", 1, "--precision", precision, "--json")
        return out

    def verdict(self, precision, pics):
        r = self("bench", "score", "--release", self.release(precision, pics), "--images", pics, "--threads", 1, "--time", "6s", "--json")[0]
        return 1 / r["images_per_cpu_second"]


def run_once(*command):
    """Processor seconds and largest resident memory, in MiB, of a process."""
    child = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status not in (0, 256):  # 1: something is anomalous
        sys.exit(f"{' '.join(map(str, command))} ended with {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


class Torch:
    """PyTorch with timm's ViTs, and a PatchCore of two layers of them."""

    def __init__(self):
        import timm
        import torch

        self.torch, self.timm = torch, timm
        torch.set_num_threads(1)
        self.kept = {}

    def vit(self, arch):
        if arch not in self.kept:
            self.kept[arch] = self.timm.create_model(f"vit_{arch}_patch16_224", pretrained=False, num_classes=0).eval()
        return self.kept[arch]

    def forward(self, arch, batch):
        x = self.torch.randn(batch, 3, SIZE, SIZE)
        with self.torch.inference_mode():
            return cpu_of(lambda: self.vit(arch)(x)) / batch

    def features(self, file):
        img = Image.open(io.BytesIO(file)).convert("RGB").resize((SIZE, SIZE), Image.BICUBIC)
        x = (np.asarray(img, np.float32) / 255 - 0.5) / 0.5
        x = self.torch.from_numpy(x.transpose(2, 0, 1).copy())[None]
        model, out = self.vit("tiny"), []
        with self.torch.inference_mode():
            x = model._pos_embed(model.patch_embed(x))
            for i, block in enumerate(model.blocks):
                x = block(x)
                if i in (3, 7):
                    out.append(x[0, 1:])
            return out, model.norm(x)[0, 0]

    def fit(self, files):
        got = [self.features(f)[0] for f in files[:20]]
        return [self.torch.cat([g[k] for g in got])[:BANK] for k in range(2)]

    def judge(self, banks, file):
        patches, _ = self.features(file)
        with self.torch.inference_mode():
            return sum(float(self.torch.cdist(p, b).min(1).values.max()) for p, b in zip(patches, banks))

    def step(self):
        torch, model = self.torch, self.timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=2).train()
        for p in [*model.patch_embed.parameters(), model.cls_token, model.pos_embed, *model.blocks[:6].parameters()]:
            p.requires_grad_(False)
        opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=4e-4)
        x, y = torch.randn(16, 3, SIZE, SIZE), torch.arange(16) % 2

        def one():
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            opt.step()

        return cpu_of(one)


def clusters(n, dim, queries=512):
    """Made up as `nearmiss bench bank` makes them: clusters in about 30 directions."""
    r = np.random.default_rng(1)
    axes, centres = r.normal(size=(30, dim)), r.normal(size=(100, 30))
    x = (centres[r.integers(100, size=n + queries)] + 0.5 * r.normal(size=(n + queries, 30))) @ axes
    x = (x + 0.05 * r.normal(size=x.shape)).astype(np.float32)
    return x[:n], x[n:]


def graph(kind, n, dim, ef):
    """Seconds to build by the clock on all cores, seconds a query and recall@2 of an HNSW with M = 16."""
    data, queries = clusters(n, dim)
    d = (queries**2).sum(1)[:, None] - 2 * queries @ data.T + (data**2).sum(1)[None]
    truth = np.argpartition(d, 2, axis=1)[:, :2]
    began = time.perf_counter()
    if kind == "hnswlib":
        import hnswlib

        index = hnswlib.Index(space="l2", dim=dim)
        index.init_index(max_elements=n, M=16, ef_construction=200)
        index.set_num_threads(1)
        index.add_items(data, num_threads=os.cpu_count())
        index.set_ef(ef)
        ask = lambda: index.knn_query(queries, k=2, num_threads=1)[0]
    else:
        import faiss

        faiss.omp_set_num_threads(os.cpu_count())
        index = faiss.IndexHNSWFlat(dim, 16)
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, ef
        index.add(data)
        faiss.omp_set_num_threads(1)
        ask = lambda: index.search(queries, 2)[1]
    build = time.perf_counter() - began
    recall = np.mean([len(set(map(int, a)) & set(map(int, b))) / 2 for a, b in zip(ask(), truth)])
    return build, cpu_of(ask) / len(queries), recall


def installed(name):
    return importlib.util.find_spec(name) is not None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--peer", help=argparse.SUPPRESS)  # a picture: start, judge it, end
    parser.add_argument("--rounds", type=int, default=3, help="how often all take turns")
    args = parser.parse_args()
    ROUNDS = args.rounds
    if args.peer:
        t = Torch()
        files = [p.read_bytes() for p in sorted(Path(args.peer).parent.glob("*.jpg"))[:1]]
        banks = [t.torch.randn(BANK, 192)] * 2
        print(t.judge(banks, files[0]))
        return
    rows = []

    def row(what, ours, theirs, peer, note="", unit="ms", times=1000.0):
        rows.append(f"| {what} | {times * ours:.3g} {unit} | {times * theirs:.3g} {unit} | {peer} | **{theirs / ours:.2f}** | {note} |")
        print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        pics = pictures(folder / "pictures")
        files = [p.read_bytes() for p in sorted(pics.glob("*.jpg"))]
        ours = Program(os.path.abspath(args.program), folder)
        print("| what | nearmiss | peer | peer's name | times as good | |\n|---|---|---|---|---|---|", flush=True)
        if installed("torch") and installed("timm"):
            # First, because a process counts as its own the memory of the one that began it.
            picture, release = sorted(pics.glob("*.jpg"))[0], ours.release("fp32", pics)
            both = [run_once(ours.path, "score", "--release", release, "--threads", 1, picture)
                    + run_once(sys.executable, __file__, "--program", args.program, "--peer", picture) for _ in range(ROUNDS)]
            cpu, memory, their_cpu, their_memory = map(statistics.median, zip(*both))
            row("start, one picture, end", cpu, their_cpu, "PyTorch, timm", "one process, processor time", unit="s", times=1)
            row("largest memory of that process", memory, their_memory, "PyTorch, timm", unit="MiB", times=1)
            t = Torch()
            name = f"PyTorch {t.torch.__version__}, timm"
            for arch, label in (("tiny", "ViT-Ti"), ("small", "ViT-S")):
                for batch, precision in ((1, "fp32"), (16, "fp32"), (1, "int8")):
                    both = [(ours.forward(arch, batch, precision, pics), t.forward(arch, batch)) for _ in range(ROUNDS)]
                    row(f"forward, {label}, batch {batch}, {precision}", *map(statistics.median, zip(*both)), name, "fp32 there")
            banks = t.fit(files)
            for precision in ("fp32", "int8"):
                both = [(ours.verdict(precision, pics), cpu_of(lambda: [t.judge(banks, f) for f in files[:8]]) / 8) for _ in range(ROUNDS)]
                row(f"file to verdict, ViT-Ti, {precision}", *map(statistics.median, zip(*both)), name + ", PatchCore of 2 layers", "here `full`")
            both = [(ours("bench", "train", "--batch", 16, "--freeze", 6, "--threads", 1, "--rounds", 1, "--json")[0]["step"]["cpu_seconds"], t.step())
                    for _ in range(ROUNDS)]
            row("training step, ViT-S, batch 16, half frozen", *map(statistics.median, zip(*both)), name, unit="s", times=1)
        for kind in ("hnswlib", "faiss"):
            if not installed(kind):
                continue
            for n, dim in ((20_000, 192), (20_000, 768)):
                r = ours("bench", "bank", "--size", f"{n}x{dim}", "--index", "hnsw", "--no-engine", "--json")[0]
                build, ask, recall = graph(kind, n, dim, r.get("ef_search") or 64)
                one = f"recall@2 {r['recall']:.3f} here, {recall:.3f} there"
                row(f"a query, HNSW, {n:,} × {dim}", 1 / r["queries_per_cpu_second"], ask, kind, one, unit="µs", times=1e6)
                row(f"build, HNSW, {n:,} × {dim}", r["build_seconds"], build, kind, "by the clock, all cores", unit="s", times=1)
    print(f"\n{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, medians of {ROUNDS} rounds in turns, processor time on one thread where nothing else is said")


if __name__ == "__main__":
    main()
