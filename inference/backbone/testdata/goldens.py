#!/usr/bin/env python3
"""Writes the goldens of inference/backbone beside this script.

Reference outputs of small backbones, computed in float64 by PyTorch:
torchvision's own ResNet and ConvNeXt, and plain functional implementations of
the ViT and the ResNet-ViT hybrid written for this script from the papers.
Weights are not stored: both sides draw them from a hash of their names.

Needs numpy, scipy, torch and torchvision (Debian: python3-torchvision
python3-scipy). Usage: goldens.py
"""
import json
import os
import zlib

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
import torchvision

HERE = os.path.dirname(os.path.abspath(__file__))
torch.set_default_dtype(torch.float64)
U64 = np.uint64


def splitmix(name, n):
    """n numbers of [0, 1): splitmix64 counted from the CRC-32 of the name."""
    with np.errstate(over="ignore"):
        z = U64(zlib.crc32(name.encode())) * U64(0x9E3779B97F4A7C15)
        z = z + np.arange(1, n + 1, dtype=U64) * U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        z = z ^ (z >> U64(31))
    return (z >> U64(40)).astype(np.float64) / 2**24


class Weights:
    """Draws weights and remembers them for the JSON: value = offset + scale·(2u − 1)."""

    def __init__(self):
        self.listing, self.data = [], {}

    def __call__(self, name, *shape, scale=None, offset=0.0):
        if scale is None:
            scale = float(np.sqrt(3.0 / np.prod(shape[1:]))) if len(shape) > 1 else 0.1
        scale, offset = float(np.float32(scale)), float(offset)
        u = splitmix(name, int(np.prod(shape)))
        a = np.float32(offset) + np.float32(scale) * (2 * u - 1).astype(np.float32)
        self.listing.append({"name": name, "shape": list(shape), "scale": scale, "offset": offset})
        self.data[name] = a.reshape(shape).astype(np.float64)
        return self.data[name]

    def norm(self, name, c, weight="weight", bias="bias", sep="."):
        self(name + sep + weight, c, scale=0.3, offset=1)
        self(name + sep + bias, c)


def images(n, size):
    return (splitmix("image", n * size * size * 3) * 256).astype(np.uint8).reshape(n, size, size, 3)


def normalised(n, size, mean, std):
    x = torch.tensor(images(n, size).astype(np.float64)) / 255
    return ((x - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def rounded(t):
    return [[float("%.6g" % v) for v in row] for row in t.detach().reshape(t.shape[0], -1).numpy()]


def save(file, weights, **content):
    content["weights"] = weights.listing
    with open(os.path.join(HERE, file + ".json"), "w") as f:
        json.dump(content, f)
        f.write("\n")


HALF = ([0.5] * 3, [0.5] * 3)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


# --- ViT -------------------------------------------------------------------

def draw_encoder(w, dim, depth, hidden, scale_layers=False):
    for i in range(depth):
        p = "blocks.%d." % i
        w.norm(p + "norm1", dim)
        w(p + "attn.qkv.weight", 3 * dim, dim), w(p + "attn.qkv.bias", 3 * dim)
        w(p + "attn.proj.weight", dim, dim), w(p + "attn.proj.bias", dim)
        w.norm(p + "norm2", dim)
        w(p + "mlp.fc1.weight", hidden, dim), w(p + "mlp.fc1.bias", hidden)
        w(p + "mlp.fc2.weight", dim, hidden), w(p + "mlp.fc2.bias", dim)
        if scale_layers:
            w(p + "ls1.gamma", dim, scale=0.5, offset=0.5), w(p + "ls2.gamma", dim, scale=0.5, offset=0.5)
    w.norm("norm", dim)


def encode(d, x, dim, depth):
    """x: [N, T, D] with positions added."""
    heads = dim // 64
    for i in range(depth):
        p = "blocks.%d." % i
        ln = lambda y, n: F.layer_norm(y, (dim,), d[p + n + ".weight"], d[p + n + ".bias"], 1e-6)
        h = F.linear(ln(x, "norm1"), d[p + "attn.qkv.weight"], d[p + "attn.qkv.bias"])
        n, t, _ = h.shape
        q, k, v = h.view(n, t, 3, heads, 64).permute(2, 0, 3, 1, 4)
        a = torch.softmax(q @ k.transpose(-1, -2) / 8.0, -1) @ v
        a = F.linear(a.transpose(1, 2).reshape(n, t, dim), d[p + "attn.proj.weight"], d[p + "attn.proj.bias"])
        x = x + a * d.get(p + "ls1.gamma", 1.0)
        h = F.gelu(F.linear(ln(x, "norm2"), d[p + "mlp.fc1.weight"], d[p + "mlp.fc1.bias"]))
        h = F.linear(h, d[p + "mlp.fc2.weight"], d[p + "mlp.fc2.bias"])
        x = x + h * d.get(p + "ls2.gamma", 1.0)
    return F.layer_norm(x, (dim,), d["norm.weight"], d["norm.bias"], 1e-6)


def vit(d, image, dim, depth, patch, pos=None):
    x = F.conv2d(image, d["patch_embed.proj.weight"], d["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)
    pos = d["pos_embed"] if pos is None else pos
    cls = d["cls_token"].expand(len(x), -1, -1)
    if "reg_token" in d:
        x = torch.cat([cls, d["reg_token"].expand(len(x), -1, -1), x + pos], 1)
    else:
        x = torch.cat([cls, x], 1) + pos
    return encode(d, x, dim, depth)


def tensors(data):
    return {k: torch.tensor(v) for k, v in data.items()}


def bicubic(pos, lead, old, new):
    grid = pos[:, lead:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([pos[:, :lead], grid.permute(0, 2, 3, 1).reshape(1, new * new, -1)], 1)


def make_vit():
    dim, depth, patch, size, hidden = 128, 3, 8, 48, 256
    w = Weights()
    w("cls_token", 1, 1, dim), w("pos_embed", 1, 37, dim, scale=0.5)
    w("patch_embed.proj.weight", dim, 3, patch, patch), w("patch_embed.proj.bias", dim)
    draw_encoder(w, dim, depth, hidden)
    w("head.weight", 10, dim)
    d = tensors(w.data)
    out = vit(d, normalised(2, size, *HALF), dim, depth, patch)
    resized = {}
    for s in (32, 72):
        pos = bicubic(d["pos_embed"], 1, 6, s // patch)
        resized[s] = rounded(vit(d, normalised(2, s, *HALF), dim, depth, patch, pos)[:, 0])
    save("vit", w, name="vit_128x3_patch8_48", size=size, embedding=rounded(out[:, 0]), tokens=rounded(out[:1]), resized=resized)


def make_vit_registers():
    dim, depth, patch, size = 64, 2, 14, 42
    w = Weights()
    w("cls_token", 1, 1, dim), w("reg_token", 1, 4, dim), w("pos_embed", 1, 9, dim)
    w("patch_embed.proj.weight", dim, 3, patch, patch), w("patch_embed.proj.bias", dim)
    draw_encoder(w, dim, depth, 128, scale_layers=True)
    out = vit(tensors(w.data), normalised(2, size, *IMAGENET), dim, depth, patch)
    save("vit_registers", w, name="vit_64x2_patch14_42", size=size, embedding=rounded(out[:, 0]))


# --- the original .npz naming ------------------------------------------------

def draw_google_encoder(w, dim, depth, hidden, tokens):
    heads = dim // 64
    w("cls", 1, 1, dim), w("Transformer/posembed_input/pos_embedding", 1, tokens, dim, scale=0.5)
    for i in range(depth):
        p = "Transformer/encoderblock_%d/" % i
        w.norm(p + "LayerNorm_0", dim, "scale", "bias", "/"), w.norm(p + "LayerNorm_2", dim, "scale", "bias", "/")
        a = p + "MultiHeadDotProductAttention_1/"
        for q in ("query", "key", "value"):
            w(a + q + "/kernel", dim, heads, 64, scale=np.sqrt(3 / dim)), w(a + q + "/bias", heads, 64, scale=0.1)
        w(a + "out/kernel", heads, 64, dim, scale=np.sqrt(3 / dim)), w(a + "out/bias", dim)
        m = p + "MlpBlock_3/"
        w(m + "Dense_0/kernel", dim, hidden, scale=np.sqrt(3 / dim)), w(m + "Dense_0/bias", hidden)
        w(m + "Dense_1/kernel", hidden, dim, scale=np.sqrt(3 / hidden)), w(m + "Dense_1/bias", dim)
    w.norm("Transformer/encoder_norm", dim, "scale", "bias", "/")


def from_google(g, dim, depth):
    """Torch-style weights out of the flax layout, by einsum-free index moves."""
    d = {"cls_token": g["cls"], "pos_embed": g["Transformer/posembed_input/pos_embedding"]}
    for i in range(depth):
        p, q = "Transformer/encoderblock_%d/" % i, "blocks.%d." % i
        a = p + "MultiHeadDotProductAttention_1/"
        d[q + "attn.qkv.weight"] = np.concatenate([g[a + n + "/kernel"].reshape(dim, dim).T for n in ("query", "key", "value")])
        d[q + "attn.qkv.bias"] = np.concatenate([g[a + n + "/bias"].reshape(dim) for n in ("query", "key", "value")])
        d[q + "attn.proj.weight"], d[q + "attn.proj.bias"] = g[a + "out/kernel"].reshape(dim, dim).T, g[a + "out/bias"]
        for j in (0, 1):
            d[q + "mlp.fc%d.weight" % (j + 1)] = g[p + "MlpBlock_3/Dense_%d/kernel" % j].T
            d[q + "mlp.fc%d.bias" % (j + 1)] = g[p + "MlpBlock_3/Dense_%d/bias" % j]
        for n, m in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            d[q + n + ".weight"], d[q + n + ".bias"] = g[p + m + "/scale"], g[p + m + "/bias"]
    d["norm.weight"], d["norm.bias"] = g["Transformer/encoder_norm/scale"], g["Transformer/encoder_norm/bias"]
    return d


def zoomed(pos, old, new):
    grid = pos[0, 1:].reshape(old, old, -1)
    grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    return torch.tensor(np.concatenate([pos[:, :1], grid.reshape(1, new * new, -1)], 1))


def make_vit_npz():
    dim, depth, patch, size, hidden = 128, 2, 16, 64, 256
    w = Weights()
    draw_google_encoder(w, dim, depth, hidden, 17)
    w("embedding/kernel", patch, patch, 3, dim, scale=np.sqrt(3 / (3 * patch * patch))), w("embedding/bias", dim)
    w("head/kernel", dim, 10), w("head/bias", 10)
    d = from_google(w.data, dim, depth)
    d["patch_embed.proj.weight"], d["patch_embed.proj.bias"] = w.data["embedding/kernel"].transpose(3, 2, 0, 1), w.data["embedding/bias"]
    d = {k: torch.tensor(np.ascontiguousarray(v)) for k, v in d.items()}
    out = vit(d, normalised(2, size, *HALF), dim, depth, patch)
    resized = {}
    for s in (48, 96):
        pos = zoomed(w.data["Transformer/posembed_input/pos_embedding"], 4, s // patch)
        resized[s] = rounded(vit(d, normalised(2, s, *HALF), dim, depth, patch, pos)[:, 0])
    save("vit_npz", w, name="vit_128x2_patch16_64", size=size, embedding=rounded(out[:, 0]), resized=resized)


# --- hybrid ------------------------------------------------------------------

def same(x, k, stride, value=0.0):
    n = x.shape[-1]
    total = max((-(-n // stride) - 1) * stride + k - n, 0)
    return F.pad(x, (total // 2, total - total // 2) * 2, value=value)


def hybrid_tokens(d, x, blocks, group_eps, std_eps):
    """d: conv kernels OIHW and norms under 'stem', 's<i>.<j>.<1-3|p>'."""
    def conv(x, name, stride=1):
        k = d[name + ".k"]
        var, mean = torch.var_mean(k, dim=(1, 2, 3), unbiased=False, keepdim=True)
        return F.conv2d(same(x, k.shape[-1], stride), (k - mean) / torch.sqrt(var + std_eps), stride=stride)

    def gn(x, name):
        return F.group_norm(x, 32, d[name + ".w"], d[name + ".b"], group_eps)

    x = F.relu(gn(conv(x, "stem", 2), "stem"))
    x = F.max_pool2d(same(x, 3, 2, float("-inf")), 3, 2)
    for i, n in enumerate(blocks):
        for j in range(n):
            p, stride = "s%d.%d." % (i, j), 2 if i > 0 and j == 0 else 1
            h = F.relu(gn(conv(x, p + "1"), p + "1"))
            h = F.relu(gn(conv(h, p + "2", stride), p + "2"))
            h = gn(conv(h, p + "3"), p + "3")
            if j == 0:
                x = gn(conv(x, p + "p", stride), p + "p")
            x = F.relu(h + x)
    return x


def make_hybrid(google):
    dim, depth, size, hidden, blocks, widths, patch = 64, 2, 64, 128, (2, 1), (128, 256), 1 if google else 2
    grid = size // 8 // patch
    w, d = Weights(), {}

    def unit(key, conv, norm, o, i, k):
        if google:
            kern = w(conv + "/kernel", k, k, i, o, scale=np.sqrt(3 / (i * k * k))).transpose(3, 2, 0, 1)
            w.norm(norm, o, "scale", "bias", "/")
            d[key + ".w"], d[key + ".b"] = w.data[norm + "/scale"], w.data[norm + "/bias"]
        else:
            kern = w(conv + ".weight", o, i, k, k)
            w.norm(norm, o)
            d[key + ".w"], d[key + ".b"] = w.data[norm + ".weight"], w.data[norm + ".bias"]
        d[key + ".k"] = np.ascontiguousarray(kern)

    p = "" if google else "patch_embed.backbone."
    unit("stem", p + ("conv_root" if google else "stem.conv"), p + ("gn_root" if google else "stem.norm"), widths[0] // 4, 3, 7)
    c = widths[0] // 4
    for i, n in enumerate(blocks):
        for j in range(n):
            b = "block%d/unit%d/" % (i + 1, j + 1) if google else p + "stages.%d.blocks.%d." % (i, j)
            o = widths[i]
            for m, (oc, ic, k) in enumerate(((o // 4, c, 1), (o // 4, o // 4, 3), (o, o // 4, 1)), 1):
                unit("s%d.%d.%d" % (i, j, m), b + "conv%d" % m, b + ("gn%d" if google else "norm%d") % m, oc, ic, k)
            if j == 0:
                unit("s%d.%d.p" % (i, j), b + ("conv_proj" if google else "downsample.conv"), b + ("gn_proj" if google else "downsample.norm"), o, c, 1)
            c = o
    if google:
        draw_google_encoder(w, dim, depth, hidden, grid * grid + 1)
        enc = from_google(w.data, dim, depth)
        enc["proj"] = w("embedding/kernel", patch, patch, c, dim, scale=np.sqrt(3 / (c * patch * patch))).transpose(3, 2, 0, 1)
        enc["proj_bias"] = w("embedding/bias", dim)
    else:
        w("cls_token", 1, 1, dim), w("pos_embed", 1, grid * grid + 1, dim)
        draw_encoder(w, dim, depth, hidden)
        enc = dict(w.data)
        enc["proj"], enc["proj_bias"] = w("patch_embed.proj.weight", dim, c, patch, patch), w("patch_embed.proj.bias", dim)
    d.update(enc)
    d = {k: torch.tensor(np.ascontiguousarray(v)) for k, v in d.items()}
    x = hybrid_tokens(d, normalised(2, size, *HALF), blocks, 1e-6 if google else 1e-5, 1e-8)
    x = F.conv2d(x, d["proj"], d["proj_bias"], stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([d["cls_token"].expand(len(x), -1, -1), x], 1) + d["pos_embed"]
    out = encode(d, x, dim, depth)
    save("hybrid_npz" if google else "hybrid", w, name="vit_64x2_r11_s%d_64" % (8 * patch), size=size, embedding=rounded(out[:, 0]))


# --- ResNet and ConvNeXt: torchvision's code ----------------------------------

def make_resnet(name, block, layers, listed):
    net = torchvision.models.ResNet(block, layers)
    w = Weights()
    state = {}
    for key, t in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        shape = list(t.shape)
        if key.endswith("running_var"):
            state[key] = w(key, *shape, scale=0.5, offset=1)
        elif t.dim() == 1 and key.endswith(".weight"):
            state[key] = w(key, *shape, scale=0.3, offset=0.7)
        elif t.dim() == 4:
            state[key] = w(key, *shape, scale=np.sqrt(6 / np.prod(shape[1:])))
        elif not key.startswith("fc."):
            state[key] = w(key, *shape)
    net.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    net.eval()
    net.fc = torch.nn.Identity()
    with torch.no_grad():
        out = net(normalised(2, 64, *IMAGENET))
    save(name, w, name=listed, size=64, embedding=rounded(out))


def make_convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
    widths, blocks = (32, 48, 64, 96), (1, 2, 2, 1)
    setting = [CNBlockConfig(c, (widths + (None,))[i + 1], n) for i, (c, n) in enumerate(zip(widths, blocks))]
    net = ConvNeXt(setting, stochastic_depth_prob=0.0)
    w, state = Weights(), {}
    for key, t in net.state_dict().items():
        parts = key.split(".")
        shape = list(t.shape)
        if parts[0] == "classifier":
            if parts[1] != "0":
                continue
            timm = "head.norm." + parts[2]
        else:
            level = int(parts[1])
            if level == 0:
                timm = "stem.%s.%s" % (parts[2], parts[3])
            elif level % 2 == 0:
                timm = "stages.%d.downsample.%s.%s" % (level // 2, parts[2], parts[3])
            elif parts[3] == "layer_scale":
                timm, shape = "stages.%d.blocks.%s.gamma" % (level // 2, parts[2]), shape[:1]
            else:
                inner = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}[parts[4]]
                timm = "stages.%d.blocks.%s.%s.%s" % (level // 2, parts[2], inner, parts[5])
        if timm.endswith("gamma"):
            v = w(timm, *shape, scale=0.5, offset=0.5)
        elif len(shape) == 1 and timm.endswith("weight"):
            v = w(timm, *shape, scale=0.3, offset=1)
        else:
            v = w(timm, *shape)
        state[key] = torch.tensor(v.reshape(t.shape))
    net.load_state_dict(state, strict=False)
    net.eval()
    with torch.no_grad():
        out = net.classifier[0](net.avgpool(net.features(normalised(2, 64, *IMAGENET))))
    save("convnext", w, name="convnext_32", size=64, embedding=rounded(out.flatten(1)))


# --- a real .npz, as numpy writes it -------------------------------------------

def make_reader():
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 8 - 1
    arrays = {
        "plain": a, "deep/name": a[0], "double": a.astype(np.float64), "half": a.astype(np.float16),
        "fortran": np.asfortranarray(a), "scalar": np.float32(2.5), "ints": np.arange(3), "empty": a[:0],
    }
    np.savez(os.path.join(HERE, "stored.npz"), **arrays)
    np.savez_compressed(os.path.join(HERE, "deflated.npz"), **arrays)


if __name__ == "__main__":
    make_vit()
    make_vit_registers()
    make_vit_npz()
    make_hybrid(False)
    make_hybrid(True)
    from torchvision.models.resnet import BasicBlock, Bottleneck
    make_resnet("resnet", Bottleneck, [2, 1, 1, 1], "resnet17")
    make_resnet("resnet_basic", BasicBlock, [1, 1, 2, 1], "resnet12")
    make_convnext()
    make_reader()
