"""Writes one small model per family, exported by PyTorch 1.13 (operator set 17,
TorchScript exporter), and for each the loss and the gradient of every
parameter as PyTorch's autograd computes them. Run in this folder.
"""
import base64
import json

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torchvision.models.convnext import CNBlockConfig, ConvNeXt


class Bottleneck(nn.Module):
    def __init__(self, cin, width, stride):
        super().__init__()
        cout = 2 * width
        self.a, self.na = nn.Conv2d(cin, width, 1, bias=False), nn.BatchNorm2d(width)
        self.b, self.nb = nn.Conv2d(width, width, 3, stride, 1, groups=2, bias=False), nn.BatchNorm2d(width)
        self.c, self.nc = nn.Conv2d(width, cout, 1, bias=False), nn.BatchNorm2d(cout)
        self.skip = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        h = F.relu(self.na(self.a(x)))
        h = F.relu(self.nb(self.b(h)))
        return F.relu(self.nc(self.c(h)) + self.skip(x))


class ResNet(nn.Module):
    """Strided 7x7 stem, strided and overlapping 3x3 max pool, frozen statistics."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Bottleneck(8, 8, 1), Bottleneck(16, 8, 2))
        self.head = nn.Linear(16, 3)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)

    def forward(self, x):
        h = self.blocks(self.pool(F.relu(self.norm(self.stem(x)))))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(h, 1), 1))


class StandardConv(nn.Conv2d):
    """Convolution with standardised weights, eps 1e-5."""

    def forward(self, x):
        v, m = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return self._conv_forward(x, (self.weight - m) / torch.sqrt(v + 1e-5), self.bias)


class Hybrid(nn.Module):
    """Weight-standardised convolutions with GroupNorm, then a transformer block."""

    def __init__(self):
        super().__init__()
        self.a, self.na = StandardConv(3, 8, 7, 2, 3, bias=False), nn.GroupNorm(4, 8, eps=1e-6)
        self.b, self.nb = StandardConv(8, 16, 3, 2, 1, bias=False), nn.GroupNorm(4, 16, eps=1e-6)
        self.cls = nn.Parameter(torch.randn(1, 1, 16) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, 17, 16) * 0.02)
        self.n1, self.n2 = nn.LayerNorm(16, eps=1e-6), nn.LayerNorm(16, eps=1e-6)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        h = F.max_pool2d(F.relu(self.na(self.a(x))), 3, 2, 1)
        h = F.relu(self.nb(self.b(h)))
        h = h.flatten(2).transpose(1, 2)
        h = torch.cat([self.cls.expand(h.shape[0], -1, -1), h], 1) + self.pos
        n, l, c = h.shape
        q, k, v = self.qkv(self.n1(h)).reshape(n, l, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        p = (q @ k.transpose(-2, -1) * (c // 2) ** -0.5).softmax(-1)
        h = h + self.proj((p @ v).transpose(1, 2).reshape(n, l, c))
        h = h + self.down(F.gelu(self.up(self.n2(h))))
        return self.head(h[:, 0])


class Residual(nn.Module):
    def __init__(self, cin, cout, temb):
        super().__init__()
        self.n1, self.c1 = nn.GroupNorm(2, cin, eps=1e-6), nn.Conv2d(cin, cout, 3, padding=1)
        self.t = nn.Linear(temb, cout)
        self.n2, self.c2 = nn.GroupNorm(2, cout, eps=1e-6), nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1)

    def forward(self, x, t):
        h = self.c1(F.silu(self.n1(x))) + self.t(F.silu(t))[:, :, None, None]
        return (self.skip(x) + self.c2(F.silu(self.n2(h)))) / 2**0.5


class UNet(nn.Module):
    """Two levels, skip connection, attention, time embedding."""

    def __init__(self):
        super().__init__()
        self.t1, self.t2 = nn.Linear(8, 12), nn.Linear(12, 12)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b, self.c = Residual(8, 8, 12), Residual(8, 12, 12), Residual(20, 8, 12)
        self.norm, self.qkv, self.out = nn.GroupNorm(2, 12, eps=1e-6), nn.Conv2d(12, 36, 1), nn.Conv2d(12, 12, 1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        t = x.mean((2, 3))[:, :1] * torch.arange(1, 5)[None]
        t = self.t2(F.silu(self.t1(torch.cat([t.sin(), t.cos()], 1))))
        h1 = self.a(self.first(x), t)
        h = self.b(F.avg_pool2d(h1, 2), t)
        n, c, height, width = h.shape
        q, k, v = self.qkv(self.norm(h)).flatten(2).chunk(3, 1)
        p = (q.transpose(1, 2) @ k * c**-0.5).softmax(-1)
        h = (h + self.out((v @ p.transpose(1, 2)).reshape(n, c, height, width))) / 2**0.5
        h = F.interpolate(h, scale_factor=2, mode="nearest")
        return self.last(F.silu(self.c(torch.cat([h, h1], 1), t)))


def packed(t):
    return base64.b64encode(t.detach().float().contiguous().numpy().tobytes()).decode()


def write(name, model, size):
    model.eval()
    with torch.no_grad():
        # The exporter merges parameters with equal values, such as fresh scales.
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    x = torch.randn(2, 3, size, size)
    torch.onnx.export(
        model, x, name + ".onnx", opset_version=17, input_names=["x"], output_names=["y"],
        do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
    )
    y = model(x)
    if y.dim() == 2:
        loss = F.cross_entropy(y, torch.tensor([1, 2]))
    else:
        loss = y.square().mean()
    loss.backward()
    golden = {"x": packed(x), "shape": list(x.shape), "loss": loss.item(), "gradients": {}}
    for key, p in model.named_parameters():
        golden["gradients"][key] = packed(p.grad)
    with open(name + ".json", "w") as f:
        f.write("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in golden.items()) + "\n}\n")


torch.manual_seed(0)
write("vit", torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3), 16)
write("resnet", ResNet(), 32)
write("convnext", ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], layer_scale=0.5, num_classes=3), 32)
write("hybrid", Hybrid(), 32)
write("unet", UNet(), 8)
