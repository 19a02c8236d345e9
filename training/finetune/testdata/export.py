#!/usr/bin/env python3
"""Writes torch_small.onnx and torch_small.json beside this script.

A small network that inference/backbone has no code for (convolutions, batch
norm, overlapping max pooling, attention with LayerNorm and GELU), exported by
PyTorch at operator set 17 as a user would, and what ten steps of plain SGD on a
classifier behind it do to the loss, in PyTorch.

Needs numpy and torch (Debian: python3-torch). Usage: export.py
"""
import json
import os

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = (q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5).softmax(-1) @ v
        x = x + self.proj(a.transpose(1, 2).reshape(n, t, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Conv2d(16, 32, 3, 1, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.cls = nn.Parameter(torch.randn(1, 1, 32) * 0.1)
        self.block = Block(32, 2)
        self.norm = nn.LayerNorm(32)

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = F.silu(self.conv2(x))
        x = x + F.hardswish(self.depthwise(x))
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        return self.norm(self.block(x))


def main():
    torch.manual_seed(5)
    net = Net().eval()
    with torch.no_grad():
        net.bn1.running_mean.normal_(0, 0.1)
        net.bn1.running_var.uniform_(0.5, 1.5)
    # Not folded into the convolution: training keeps it frozen and apart.
    torch.onnx.export(net, torch.zeros(1, 3, 24, 24), os.path.join(HERE, "torch_small.onnx"), opset_version=17,
                      training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
                      input_names=["pixels"], output_names=["last_hidden_state"],
                      dynamic_axes={"pixels": {0: "batch"}, "last_hidden_state": {0: "batch"}})

    rng = np.random.RandomState(3)
    images = rng.randint(0, 256, (8, 24, 24, 3)).astype(np.uint8)
    images[4:, 8:16, 8:16] //= 2  # the second class has a darker middle
    labels = torch.tensor([0] * 4 + [1] * 4)
    x = (torch.tensor(images).float() / 255 - 0.5) / 0.5
    x = x.permute(0, 3, 1, 2)
    head = nn.Linear(32, 2)
    with torch.no_grad():
        head.weight.copy_(0.1 * torch.sin(torch.arange(64.0)).view(2, 32))
        head.bias.zero_()
    params = [p for p in list(net.parameters()) + list(head.parameters())]
    opt = torch.optim.SGD(params, lr=0.05, weight_decay=1e-3)
    losses = []
    for _ in range(10):
        loss = F.cross_entropy(head(net(x)[:, 0]), labels)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(float(loss))
    with torch.no_grad():
        tuned = net(x)[:, 0]
    with open(os.path.join(HERE, "torch_small.json"), "w") as f:
        json.dump({"images": images.reshape(-1).tolist(), "labels": labels.tolist(), "losses": losses,
                   "embedding": [[float("%.6g" % v) for v in row] for row in tuned.numpy()]}, f)
        f.write("\n")


if __name__ == "__main__":
    main()
