"""Writes small models exported by PyTorch 1.13 (TorchScript exporter), random
weights, some with an open batch dimension. Run in this folder, then shapes.py.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision


class Mixture(nn.Module):
    """Everything around a score network that makes shape arithmetic."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.back = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.embedding = nn.Embedding(10, 8)

    def forward(self, x):
        h = F.silu(self.norm(self.conv(x)))
        h = self.up(F.avg_pool2d(h, 2))
        h = h + F.interpolate(self.back(h), size=(x.shape[2], x.shape[3]))
        b, c, height, width = h.shape
        y = h.flatten(2).transpose(1, 2)
        y = self.attention(y, y, y)[0]
        y = torch.einsum("blc,bmc->blm", y, y).softmax(-1) @ y
        y = y.transpose(1, 2).reshape(b, c, height, width)
        y = F.pad(y, (1, 1, 2, 2))[:, :, 2:-2, 1:-1]
        h = torch.cat(h.chunk(2, 1)[::-1], 1)
        h = h + self.embedding(torch.arange(b) % 10)[:, :, None, None] + y.cumsum(-1).clamp(-1, 1)
        h = torch.where(h > 0, h, h * 0.1).repeat(1, 1, 2, 1)
        return h.norm(dim=1), h.amax((2, 3)), h.var(dim=(2, 3)), h.topk(2, dim=1)[0], h.argmax(1)


def export(name, model, opset, x, open_batch):
    torch.manual_seed(1)
    axes = {"x": {0: "n"}} if open_batch else None
    torch.onnx.export(model.eval(), x, name, opset_version=opset, input_names=["x"], dynamic_axes=axes)


torch.manual_seed(0)
x = torch.randn(2, 3, 16, 16)
for opset in (13, 17):
    for open_batch in (False, True):
        end = f"{opset}_{'open' if open_batch else 'fixed'}.onnx"
        export("mixture_" + end, Mixture(), opset, x, open_batch)
        export("vit_" + end, torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=3), opset, x, open_batch)
