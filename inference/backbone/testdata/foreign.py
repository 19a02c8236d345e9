#!/usr/bin/env python3
"""Writes foreign_dinov2.onnx, a small DINOv2 as PyTorch's exporter writes it at
another size than its own (shapes are computed inside: Shape, Gather, Concat,
Resize), with an open batch, and foreign.json, what it gives: the class token, the
patches' means after each block. Weights are drawn as in families.py.

Needs torch, transformers and onnx (written with 2.8.0, 4.57 and 1.19). Usage: foreign.py
"""
import json
import os

import onnx
import torch
import transformers

from families import draw, pooled
from goldens import IMAGENET, normalised, rounded

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    t = transformers
    net = t.Dinov2Model(t.Dinov2Config(image_size=56, patch_size=14, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, attn_implementation="eager"))
    draw(net)
    path = os.path.join(HERE, "foreign_dinov2.onnx")
    net = net.float()

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = net

        def forward(self, x):
            out = self.backbone(x)
            return out.last_hidden_state, out.pooler_output

    torch.onnx.export(Features(), normalised(1, 42, *IMAGENET).float(), path, opset_version=14, dynamo=False, input_names=["pixels"],
                      output_names=["hidden", "pooled"], dynamic_axes={"pixels": {0: "n"}, "hidden": {0: "n"}, "pooled": {0: "n"}})
    model = onnx.load(path)
    del model.graph.value_info[:]
    onnx.save(model, path)
    net = net.double()
    with torch.no_grad():
        out = net(normalised(2, 42, *IMAGENET), output_hidden_states=True)
    with open(os.path.join(HERE, "foreign.json"), "w") as f:
        json.dump(dict(size=42, embedding=rounded(out.last_hidden_state[:, 0]), layers=[rounded(pooled(h, 1)) for h in out.hidden_states[1:]]), f)
        f.write("\n")


main()
