#!/usr/bin/env python3
"""Writes torch_*.pth beside this script: one small state dict in each layout that
PyTorch has had, and a checkpoint with what training leaves beside the weights.
Needs torch (written with 2.8.0). Usage: torch_files.py
"""
import argparse
import collections
import os

import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))


def tensors():
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return collections.OrderedDict(
        a=torch.tensor([[1.5, -2.0], [0.25, 8.0]]), half=torch.tensor([1.5, -0.25]).half(), brain=torch.tensor([3.0, -1.0]).bfloat16(),
        double=torch.tensor([0.1], dtype=torch.float64), turned=whole.t(), part=whole[1:3, 2:5], scalar=torch.tensor(7.0),
        parameter=torch.nn.Parameter(torch.tensor([4.0, 5.0])), count=torch.tensor(3))


torch.save(tensors(), os.path.join(HERE, "torch_zip.pth"))
torch.save(tensors(), os.path.join(HERE, "torch_legacy.pth"), _use_new_zipfile_serialization=False)
net = torch.nn.Linear(2, 2)
opt = torch.optim.AdamW(net.parameters())
net(torch.ones(1, 2)).sum().backward()
opt.step()
torch.save(dict(model=dict(w=torch.tensor([1.0])), optimizer=opt.state_dict(), epoch=np.float64(3), args=argparse.Namespace(lr=0.1, names=["a"])),
           os.path.join(HERE, "torch_checkpoint.pth"))
