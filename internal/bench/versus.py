"""Measures PyTorch, anomalib, faiss and hnswlib beside nearmiss, in one run, and prints ratios.

`make versus` installs the peers and runs this. Everything is measured on one thread, in
turns, by processor time, which a busy machine disturbs less than the clock. A peer that
is not installed has no row. Random weights: they are as fast as trained ones. With --data
and --weights, AUROC of both sides by the same trained weights and the same normals.
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

    def has(self, name):
        """Whether a backbone of the catalogue is here, or can be had."""
        return subprocess.run([self.path, "backbone", "pull", name, "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def release(self, precision, pics, backbone="tiny"):
        out = self.folder / f"release-{backbone}-{precision}"
        if not out.exists():
            model = self.backbone(backbone) if backbone == "tiny" else backbone
            self("fit", "--normals", pics, "--backbone", model, "--out", out, "--seed", 1, "--exposure", "usual",
                 "--frame", "all", "--threads", 1, "--precision", precision, "--json")
        return out

    def verdict(self, precision, pics, backbone="tiny"):
        r = self("bench", "score", "--release", self.release(precision, pics, backbone), "--images", pics, "--threads", 1, "--time", "6s", "--json")[0]
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


class Anomalib:
    """Models of anomalib in OpenVINO, asked through its inferencer: a file in, a verdict out.

    Its own exporter wants PyTorch 2.10, so the same three parts (its transform, model and
    post-processor) are traced and converted here. Pictures are read as 256 × 256.
    """

    def __init__(self, folder):
        self.folder = folder

    def patchcore(self, arch, layers, files=None, weights=None):
        """PatchCore of two layers; its bank the coreset of a tenth of files' patches, or drawn."""
        import torch
        from anomalib.data.utils import read_image
        from anomalib.models import Patchcore
        from anomalib.pre_processing import PreProcessor
        from torchvision.transforms.v2 import Compose, Normalize, Resize

        half = arch.startswith("vit")  # timm's ViT-Ti was trained on −1..1
        scale = Normalize([0.5] * 3, [0.5] * 3) if half else Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        pre = PreProcessor(transform=Compose([Resize((SIZE, SIZE), antialias=True), scale]))
        model = Patchcore(backbone=arch, layers=layers, pre_trained=False, pre_processor=pre).eval()
        core = model.model
        if weights:
            from safetensors.torch import load_file

            core.feature_extractor.feature_extractor.load_state_dict(load_file(weights))
        core.training = True  # itself alone: it collects patches then
        with torch.no_grad():
            for f in files or []:
                core(pre.transform(read_image(f, as_tensor=True)[None]))
            if files:
                core.subsample_embedding(0.1)
            else:
                core.memory_bank = torch.randn(BANK, core(torch.rand(1, 3, SIZE, SIZE)).shape[1])
        core.training = False
        return self.converted(f"patchcore-{arch}-{bool(files)}", pre, core, model.post_processor)

    def efficientad(self):
        from anomalib.models import EfficientAd

        model = EfficientAd().eval()
        return self.converted("efficientad", model.pre_processor, model.model, model.post_processor)

    def converted(self, name, *parts):
        import openvino
        import torch

        class Whole(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.parts = torch.nn.ModuleList(p for p in parts if isinstance(p, torch.nn.Module))

            def run(self, x):
                for p in self.parts:
                    x = p(x)
                return {k: v for k, v in x._asdict().items() if v is not None}

            def forward(self, x):
                return tuple(self.run(x).values())

        whole, x = Whole().eval(), torch.rand(1, 3, 256, 256)
        with torch.no_grad():
            names = list(whole.run(x))
        graph = openvino.convert_model(whole, example_input=x, input=[1, 3, 256, 256])
        for output, n in zip(graph.outputs, names):
            output.get_tensor().set_names({n})
        path = self.folder / name / "model.xml"
        openvino.save_model(graph, path, compress_to_fp16=False)
        return path

    def ask(self, path, precision, files, least):
        """What a process of its own (see inferred) says of files; None where it fails."""
        command = [sys.executable, "-W", "ignore", os.path.abspath(__file__), "--program", "", "--ask", path, precision, str(least), *files]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder)
        if done.returncode:
            print(f"(OpenVINO ended with {done.returncode}: {path.parent.name}, {precision}: {done.stderr[-200:]})", file=sys.stderr)
            return None
        return json.loads(done.stdout.splitlines()[-1])


def inferred(path, precision, least, *files):
    """Prints what anomalib's inferencer takes for a file, and its scores.

    Precision is f32 or default: what OpenVINO chooses, bf16 where the processor has AMX.
    """
    from anomalib.deploy import OpenVINOInferencer

    config = {"INFERENCE_NUM_THREADS": 1}
    if precision != "default":
        config["INFERENCE_PRECISION_HINT"] = precision
    inferencer = OpenVINOInferencer(path=path, device="CPU", config=config)
    scores = [float(np.ravel(inferencer.predict(f).pred_score)[0]) for f in files]
    seconds = cpu_of(lambda: [inferencer.predict(f) for f in files[:8]], float(least)) / len(files[:8]) if float(least) else 0
    print(json.dumps({"seconds": seconds, "scores": scores}))


def auroc(normal, other):
    """The share of pairs in the right order, ties a half."""
    order = np.concatenate([normal, other])
    ranks = np.array([(np.sum(order < x) + np.sum(order <= x) + 1) / 2 for x in other])
    return (ranks.sum() - len(other) * (len(other) + 1) / 2) / (len(normal) * len(other))


def quality(ours, them, data, weights, normals, folder):
    """AUROC of `full` and of PatchCore by ViT-Ti's same weights and normals; pictures of 256 × 256."""

    def copy(part, most=None):
        to = folder / "data" / part
        to.mkdir(parents=True)
        for i, f in enumerate(sorted((Path(data) / part).iterdir())[:most]):
            Image.open(f).convert("RGB").resize((256, 256), Image.BICUBIC).save(to / f"{i:04}.jpg", quality=95)
        return sorted(to.iterdir())

    train = copy("train/good", normals)
    good = copy("test/good")
    bad = [f for kind in sorted((Path(data) / "test").iterdir()) if kind.name != "good" for f in copy(f"test/{kind.name}")]
    backbone, release = folder / "trained.onnx", folder / "trained"
    ours("backbone", "import", weights, "--out", backbone, "--json")
    ours("fit", "--normals", train[0].parent, "--backbone", backbone, "--out", release, "--seed", 1, "--exposure", "usual", "--frame", "all", "--threads", 1, "--json")
    scores = {Path(r["file"]).resolve(): r["score"] for r in ours("score", "--release", release, "--threads", 1, "--json", *good, *bad)}
    path = them.patchcore("vit_tiny_patch16_224", ["blocks.3", "blocks.7"], train, weights)
    out = [auroc(*([scores[f.resolve()] for f in part] for part in (good, bad)))]
    for precision in ("f32", "default"):
        got = them.ask(path, precision, good + bad, 0)["scores"]
        out.append(auroc(got[: len(good)], got[len(good) :]))
    return out, len(train), len(good), len(bad)


def clusters(n, dim, queries=512):
    """Made up as `nearmiss bench bank` makes them, from other random numbers."""
    r = np.random.default_rng(1)
    scale = (1 / np.sqrt(1 + np.arange(dim))).astype(np.float32)
    centres = r.standard_normal((32, dim), np.float32) * scale
    x = r.standard_normal((n + queries, dim), np.float32) * scale + centres[r.integers(32, size=n + queries)]
    return x[:n], x[n:]


def bank(kind, n, dim):
    """A peer's index, M = 16: seconds of building it, of a query at the least width with recall@2 ≥ 0.995, and that recall.

    Width is raised as ours is: by doubling, and the last step is halved three times.
    """
    data, queries = clusters(n, dim)
    d = (queries**2).sum(1)[:, None] - 2 * queries @ data.T + (data**2).sum(1)[None]
    truth = np.argpartition(d, 2, axis=1)[:, :2]
    width, most, index = 64, 4096, None
    began = time.process_time()
    if kind == "hnswlib":
        import hnswlib

        index = hnswlib.Index(space="l2", dim=dim)
        index.init_index(max_elements=n, M=16, ef_construction=200)
        index.set_num_threads(1)
        index.add_items(data, num_threads=1)
        ask, widen = lambda: index.knn_query(queries, k=2, num_threads=1)[0], index.set_ef
    else:
        import faiss

        faiss.omp_set_num_threads(1)
        if kind == "faiss HNSW":
            index = faiss.IndexHNSWFlat(dim, 16)
            index.hnsw.efConstruction = 200
            widen = lambda w: setattr(index.hnsw, "efSearch", w)
        elif kind == "faiss IVF":
            width, most = 8, 4 * int(n**0.5)
            index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, most)
            index.train(data)
            widen = lambda w: setattr(index, "nprobe", w)
        else:
            index, widen = faiss.IndexFlatL2(dim), lambda w: None
        index.add(data)
        ask = lambda: index.search(queries, 2)[1]
    build = time.process_time() - began

    def recall(w):
        widen(w)
        return np.mean([len(set(map(int, a)) & set(map(int, b))) / 2 for a, b in zip(ask(), truth)])

    least = width
    while recall(width) < 0.995 and width < most:
        width *= 2
    for step in (width // 4, width // 8, width // 16):
        if step and width - step >= least and recall(width - step) >= 0.995:
            width -= step
    got = recall(width)
    one_by_one = lambda: [index.knn_query(q, k=2, num_threads=1) if kind == "hnswlib" else index.search(q, 2) for q in queries[:, None, :]]
    return build, cpu_of(one_by_one) / len(queries), got, width


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--peer", help=argparse.SUPPRESS)  # a picture: start, judge it, end
    parser.add_argument("--ask", nargs="+", help=argparse.SUPPRESS)  # see inferred
    parser.add_argument("--only", default="torch,anomalib,faiss,hnswlib", help="peers to measure")
    parser.add_argument("--data", help="a data set in MVTec's layout, for AUROC")
    parser.add_argument("--weights", help="trained weights of ViT-Ti (safetensors), for AUROC")
    parser.add_argument("--normals", type=int, default=60, help="normals that both learn for AUROC")
    parser.add_argument("--large", action="store_true", help="banks of 100,000 × 768 too")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take turns")
    args = parser.parse_args()
    ROUNDS = args.rounds

    def installed(name):
        return name in (args.only + ",timm,openvino").split(",") and importlib.util.find_spec(name) is not None

    if args.ask:
        inferred(*args.ask)
        return
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
        if installed("anomalib") and installed("openvino"):
            them = Anomalib(folder)
            verdicts = {f"{label}, {p}": [ours.verdict(p, pics, b) for _ in range(ROUNDS)]
                        for label, b in (("ViT-Ti", "tiny"), ("EfficientNet-Lite0", "efficientnet-lite0"))
                        for p in (("fp32", "int8") if b == "tiny" else ("fp32",)) if b == "tiny" or ours.has(b)}
            layers = ["blocks.3", "blocks.7"]
            models = (
                ("PatchCore, the same ViT-Ti", lambda: them.patchcore("vit_tiny_patch16_224", layers)),
                ("PatchCore, resnet18", lambda: them.patchcore("resnet18", ["layer2", "layer3"])),
                ("PatchCore, wide_resnet50_2", lambda: them.patchcore("wide_resnet50_2", ["layer2", "layer3"])),
                ("EfficientAD, small", them.efficientad),
            )
            paths = sorted(pics.glob("*.jpg"))
            for name, make in models:
                path = make()
                for precision in ("f32", "default"):
                    theirs = [them.ask(path, precision, paths[:8], 1) for _ in range(ROUNDS)]
                    if None in theirs:
                        continue
                    for mine, took in verdicts.items():
                        row("file to verdict, " + mine, statistics.median(took), statistics.median(t["seconds"] for t in theirs),
                            f"anomalib's OpenVINO inferencer, {name}, {precision}", "here `full`")
            if args.data and args.weights:
                (mine, fp32, default), normals, good, bad = quality(ours, them, args.data, args.weights, args.normals, folder)
                rows.append(f"| AUROC, {Path(args.data).name}, ViT-Ti, {normals} normals, {good} good, {bad} bad | {100 * mine:.1f} % | "
                            f"{100 * fp32:.1f} % | anomalib's PatchCore, f32 | | {100 * default:.1f} % by its default precision |")
                print(rows[-1], flush=True)
        for n, dim in ((20_000, 192), (20_000, 768), *([(100_000, 768)] if args.large else [])):
            kinds = [k for k in ("hnswlib", "faiss HNSW", "faiss IVF", "faiss flat") if installed(k.split()[0])]
            if not kinds:
                break
            found = {x: ours("bench", "bank", "--size", f"{n}x{dim}", "--index", x, "--no-engine", "--json")[0] for x in ("hnsw", "exact")}
            for kind in kinds:
                r = found["exact" if kind == "faiss flat" else "hnsw"]
                build, ask, recall, width = bank(kind, n, dim)
                note = f"recall@2 {r['recall']:.3f} here, {recall:.3f} there; widths {r.get('ef_search', '-')} and {width}"
                row(f"a query, {r['index']}, {n:,} × {dim}", 1 / r["queries_per_cpu_second"], ask, kind, note, unit="µs", times=1e6)
                if kind != "faiss flat":
                    row(f"build, {r['index']}, {n:,} × {dim}", r["build_cpu_seconds"], build, kind, unit="s", times=1)
    print(f"\n{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, medians of {ROUNDS} rounds in turns, processor time on one thread where nothing else is said")


if __name__ == "__main__":
    main()
