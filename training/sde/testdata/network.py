"""Writes network.json: outputs, losses and gradients of small score networks.

An independent implementation in PyTorch of the networks of Song et al. (2021,
appendix H), written for this test. Run: python3 network.py
Weights and inputs come from a 32-bit congruential generator, seeded by the
weight's name, that the Go test repeats: only results are stored.
"""
import json
import math

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)


def lcg(name, shape, scale, shift=0.0):
    s = 2166136261
    for b in name.encode():
        s = ((s ^ b) * 16777619) % 2**32
    n, out = math.prod(shape), []
    for _ in range(n):
        s = (s * 1664525 + 1013904223) % 2**32
        out.append(scale * (2 * s / 2**32 - 1) + shift)
    return torch.tensor(out, dtype=torch.float32).double().reshape(shape)


class Net:
    def __init__(self, size, channels, width, mult, blocks, attention, fourier=False, fir=False, inp="", outp=""):
        self.__dict__.update(locals())
        self.p = {}

    def w(self, name, *shape):
        if name not in self.p:
            if name.endswith("norm.weight") or name.endswith("norm0.weight") or name.endswith("norm1.weight"):
                t = lcg(name, shape, 0.3, 1.0)
            elif name == "embedding.frequencies":
                t = lcg(name, shape, 2.0)
            else:
                t = lcg(name, shape, 0.5 / math.sqrt(math.prod(shape[1:]) if len(shape) > 1 else 4))
            self.p[name] = t.requires_grad_(name != "embedding.frequencies")
        return self.p[name]

    def conv(self, name, x, out, k, stride=1, pad=None):
        w = self.w(name + ".weight", out, x.shape[1], k, k)
        return F.conv2d(x, w, self.w(name + ".bias", out), stride=stride, padding=k // 2 if pad is None else pad)

    def lin(self, name, x, out):
        return F.linear(x, self.w(name + ".weight", out, x.shape[1]), self.w(name + ".bias", out))

    def norm(self, name, x):
        c = x.shape[1]
        return F.group_norm(x, min(c // 4, 32), self.w(name + ".weight", c), self.w(name + ".bias", c), eps=1e-6)

    def resample(self, x, by):
        n, c, h, w = x.shape
        if not self.fir:
            if by < 0:
                return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
            return x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)
        k = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
        x = x.reshape(n * c, 1, h, w)
        if by < 0:
            x = F.conv2d(F.pad(x, (1, 1, 1, 1)), k[None, None])[:, :, ::2, ::2]
            return x.reshape(n, c, h // 2, w // 2)
        # Zero insertion, then the kernel with four times the gain.
        up = torch.zeros(n * c, 1, 2 * h, 2 * w)
        up[:, :, ::2, ::2] = x
        x = F.conv2d(F.pad(up, (2, 1, 2, 1)), 4 * k[None, None])
        return x.reshape(n, c, 2 * h, 2 * w)

    def block(self, name, x, out, by=0):
        h = F.silu(self.norm(name + ".norm0", x))
        cin = x.shape[1]
        if by:
            h, x = self.resample(h, by), self.resample(x, by)
        h = self.conv(name + ".conv0", h, out, 3) + self.lin(name + ".level", F.silu(self.temb), out)[:, :, None, None]
        h = F.silu(self.norm(name + ".norm1", h))
        h = self.conv(name + ".conv1", h, out, 3)
        if cin != out or by:
            x = self.conv(name + ".skip", x, out, 1)
        return (x + h) / math.sqrt(2)

    def attend(self, name, x):
        n, c, hh, ww = x.shape
        h = self.norm(name + ".norm", x)
        w, b = self.w(name + ".qkv.weight", c, 3 * c), self.w(name + ".qkv.bias", 3 * c)
        q, k, v = [torch.einsum("nchw,cd->ndhw", h, w[:, i * c:(i + 1) * c]) + b[i * c:(i + 1) * c][None, :, None, None] for i in range(3)]
        a = torch.einsum("nchw,ncij->nhwij", q, k) * c ** -0.5
        a = torch.softmax(a.reshape(n, hh, ww, -1), -1).reshape(n, hh, ww, hh, ww)
        h = torch.einsum("nhwij,ncij->nchw", a, v)
        w, b = self.w(name + ".out.weight", c, c), self.w(name + ".out.bias", c)
        return (x + torch.einsum("nchw,cd->ndhw", h, w) + b[None, :, None, None]) / math.sqrt(2)

    def last(self, name, h):
        return self.conv(name + ".conv", F.silu(self.norm(name + ".norm", h)), self.channels, 3)

    def forward(self, x, label):
        if self.fourier:
            a = torch.log(label)[:, None] * self.w("embedding.frequencies", 1, self.width) * 2 * math.pi
        else:
            half = self.width // 2
            a = label[:, None] * torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))[None]
        e = torch.cat([torch.sin(a), torch.cos(a)], 1)
        self.temb = self.lin("embedding.1", F.silu(self.lin("embedding.0", e, 4 * self.width)), 4 * self.width)
        ch = [self.width * m for m in self.mult]
        levels, pyramid = len(ch), x
        hs = [self.conv("in", x, self.width, 3)]
        for l in range(levels):
            for b in range(self.blocks):
                h = self.block(f"down.{l}.{b}", hs[-1], ch[l])
                if h.shape[-1] in self.attention:
                    h = self.attend(f"down.{l}.{b}.attention", h)
                hs.append(h)
            if l < levels - 1:
                name = f"down.{l}.sample"
                h = self.block(name, hs[-1], ch[l], -1)
                if self.inp == "residual":
                    k = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
                    n, c, a, b = pyramid.shape
                    q = F.conv2d(F.pad(pyramid.reshape(n * c, 1, a, b), (2, 2, 2, 2)), k[None, None]).reshape(n, c, a + 1, b + 1)
                    pyramid = (self.conv(name + ".pyramid", q, ch[l], 3, 2, 0) + h) / math.sqrt(2)
                    h = pyramid
                elif self.inp == "skip":
                    pyramid = self.resample(pyramid, -1)
                    h = self.conv(name + ".pyramid", pyramid, ch[l], 1) + h
                hs.append(h)
        h = self.block("middle.0", hs[-1], ch[-1])
        h = self.attend("middle.attention", h)
        h = self.block("middle.1", h, ch[-1])
        image = None
        for l in reversed(range(levels)):
            for b in range(self.blocks + 1):
                h = self.block(f"up.{l}.{b}", torch.cat([h, hs.pop()], 1), ch[l])
            if h.shape[-1] in self.attention:
                h = self.attend(f"up.{l}.attention", h)
            if self.outp == "skip":
                part = self.last(f"up.{l}.image", h)
                image = part if image is None else self.resample(image, 1) + part
            if l:
                h = self.block(f"up.{l}.sample", h, ch[l], 1)
        return image if self.outp == "skip" else self.last("out", h)


cases = []
for name, label, net in [
    ("ddpm++", [999 * 0.3, 999 * 0.8], Net(8, 3, 8, (1, 2), 1, (4,))),
    ("ddpm++ grey, three levels", [0.2, -0.6], Net(8, 1, 8, (1, 2, 3), 2, (8, 4))),
    ("ncsn++", [0.3, 20.0], Net(8, 3, 8, (1, 2), 1, (4,), fourier=True, fir=True, inp="residual")),
    ("ncsn++ of 256 px", [0.05, 3.0], Net(16, 3, 8, (1, 1, 2), 1, (8,), fourier=True, fir=True, inp="skip", outp="skip")),
]:
    x = lcg("x", (2, net.channels, net.size, net.size), 1.5)
    target = lcg("target", x.shape, 1.0)
    y = net.forward(x, torch.tensor(label))
    loss = ((y - target) ** 2).mean()
    loss.backward()
    cases.append(dict(
        name=name, size=net.size, channels=net.channels, width=net.width, multipliers=net.mult, blocks=net.blocks,
        attention=net.attention, fourier=net.fourier, fir=net.fir, input_pyramid=net.inp, output_pyramid=net.outp, label=label,
        output=[round(v, 7) for v in y.detach().flatten().tolist()[:: 7]], loss=loss.item(),
        gradients={k: float(f"{v.grad.norm().item():.8g}") for k, v in net.p.items() if v.requires_grad}))
json.dump(cases, open("network.json", "w"), indent=0)
