#!/usr/bin/env python3
"""Writes families.json beside this script: reference outputs of small backbones
of every family and naming that the import reads, computed in float64 by timm and
Hugging Face's transformers themselves.

Weights are not stored: both sides draw them from a hash of their names (see
goldens.py). Every network has the names, and the order of its tensors, of its
own library.

Needs torch, torchvision, timm and transformers (written with 2.8.0, 0.23.0, 1.0.22 and
4.57), and for the old EfficientNet names efficientnet-lite-pytorch 0.1.0.
Usage: families.py
"""
import functools
import json
import os

import numpy as np
import timm
import torch
import transformers
from timm.layers import SwiGLUPacked
from timm.models.efficientnet import _gen_efficientnet, _gen_efficientnet_lite, _gen_mobilenet_v2
from timm.models.mobilenetv3 import _gen_mobilenet_v3

from goldens import HALF, IMAGENET, normalised, rounded, splitmix

HERE = os.path.dirname(os.path.abspath(__file__))
torch.set_default_dtype(torch.float64)


def draw(net, prefix="", gain=1.0):
    """Gives a network weights drawn by their names and returns their list."""
    listing = []
    state = net.state_dict()
    for name, t in state.items():
        if not t.is_floating_point():
            continue
        scale, offset = 0.1, 0.0
        last = name.rsplit(".", 1)[-1]
        if last == "running_var":
            scale, offset = 0.3, 1.0
        elif "gamma" in last or "lambda" in last or "layer_scale" in last:
            scale, offset = 0.5, 0.5
        elif last == "weight" and t.dim() == 1:
            scale, offset = 0.3, 1.0
        elif "token" in last or "pos" in last:
            scale = 0.5
        elif t.dim() > 1:
            scale = float(gain * np.sqrt(3.0 / np.prod(t.shape[1:])))
            if any(p in name for p in ("query", "key", "q_proj", "k_proj", "qkv")):
                scale *= 2  # attention that is not the same everywhere
        scale = float(np.float32(scale))
        name = prefix + name
        u = splitmix(name, t.numel())
        a = np.float32(offset) + np.float32(scale) * (2 * u - 1).astype(np.float32)
        t.copy_(torch.tensor(a.astype(np.float64)).reshape(t.shape))
        listing.append([name, list(t.shape), scale, offset])
    net.load_state_dict(state)
    net.eval()
    return listing


def pooled(x, lead=None):
    """The mean over the patch tokens or the plane, as the score takes it."""
    return x.mean((2, 3)) if x.dim() == 4 else x[:, lead:].mean(1)


GOLDENS = {}


def golden(name, weights, size, norm, embedding, layers, **more):
    GOLDENS[name] = dict(
        size=size, mean=norm[0], std=norm[1], weights=weights,
        embedding=rounded(embedding), layers=[rounded(l) for l in layers], **more)
    print(name, embedding.shape, len(layers))


@torch.no_grad()
def timm_vit(name, size, norm, more=None, embed=None, **config):
    net = timm.models.vision_transformer.VisionTransformer(img_size=size, num_classes=0, **config)
    run_timm(name, net, size, norm, more or {}, embed)


@torch.no_grad()
def run_timm(name, net, size, norm, more, embed=None, blocks=None, resized=None):
    weights = draw(net, gain=more.pop("gain", 1.0))
    out = []
    blocks = blocks or net.blocks
    hooks = [b.register_forward_hook(lambda m, i, o: out.append(o)) for b in blocks]
    x = normalised(2, size, *norm)
    features = net.forward_features(x)
    embedding = embed(net, features) if embed else net.forward_head(features, pre_logits=True)
    lead = getattr(net, "num_prefix_tokens", 0)
    layers = [pooled(o, lead) for o in out]
    for h in hooks:
        h.remove()
    golden(name, weights, size, norm, embedding, layers, **more)
    return weights


@torch.no_grad()
def hugging(name, net, size, norm, lead=0, embed=None, more=None, prefix=""):
    weights = draw(net, prefix)
    out = net(normalised(2, size, *norm), output_hidden_states=True)
    hidden = out.hidden_states[1:]
    embedding = embed(out) if embed else out.last_hidden_state[:, 0]
    golden(name, weights, size, norm, embedding, [pooled(h, lead) for h in hidden], **(more or {}))
    return net


def main():
    ln = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    small = dict(embed_dim=128, depth=2, num_heads=2, mlp_ratio=2)

    # timm's variants of the ViT
    timm_vit("timm_dinov2", 56, IMAGENET, patch_size=14, init_values=1e-5, **small)
    timm_vit("timm_registers", 56, IMAGENET, patch_size=14, init_values=1e-5, reg_tokens=4, no_embed_class=True, **small)
    timm_vit("timm_registers_with_positions", 48, HALF, patch_size=16, reg_tokens=2, **small)
    timm_vit("timm_no_class", 48, HALF, patch_size=16, class_token=False, global_pool="avg", **small)
    timm_vit("timm_mean_pool", 48, HALF, patch_size=16, global_pool="avg", **small)
    timm_vit("timm_no_qkv_bias", 48, HALF, patch_size=16, qkv_bias=False, **small)
    timm_vit("timm_swiglu", 56, IMAGENET, patch_size=14, init_values=1e-5, mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, **small)
    timm_vit("timm_wide_heads", 32, HALF, dict(heads=2), patch_size=16, embed_dim=160, depth=2, num_heads=2, mlp_ratio=2)
    timm_vit("timm_clip", 48, HALF, patch_size=16, pre_norm=True, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-5), **small)
    net = timm.models.deit.VisionTransformerDistilled(img_size=48, patch_size=16, num_classes=0, **small)
    run_timm("timm_deit_distilled", net, 48, IMAGENET, {})
    net = timm.models.eva.Eva(
        img_size=64, patch_size=16, num_classes=0, embed_dim=128, depth=2, num_heads=2, mlp_ratio=2, qkv_bias=False, init_values=1e-5,
        rope_type="dinov3", rope_temperature=100, use_rot_pos_emb=True, use_abs_pos_emb=False, rope_rotate_half=True, num_reg_tokens=4,
        use_fc_norm=False, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-5), global_pool="token", dynamic_img_size=True)
    run_timm("timm_dinov3", net, 64, IMAGENET, dict(arch="vit_small_patch16_dinov3"), lambda n, f: f[:, 0])

    # Hugging Face's names
    base = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
    t = transformers
    hugging("hf_vit", t.ViTModel(t.ViTConfig(image_size=48, patch_size=16, **base)), 48, HALF, 1)
    hugging("hf_deit", t.DeiTModel(t.DeiTConfig(image_size=48, patch_size=16, **base)), 48, IMAGENET, 2, lambda o: o.last_hidden_state[:, :2].mean(1), prefix="deit.")
    two = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, patch_size=14)
    net = hugging("hf_dinov2", t.Dinov2Model(t.Dinov2Config(image_size=56, **two)), 56, IMAGENET, 1)
    with torch.no_grad():  # other sizes: the library's own resampling of positions
        GOLDENS["hf_dinov2"]["resized"] = {s: rounded(net(normalised(2, s, *IMAGENET)).last_hidden_state[:, 0]) for s in (42, 84)}
    hugging("hf_dinov2_swiglu", t.Dinov2Model(t.Dinov2Config(image_size=56, use_swiglu_ffn=True, **two)), 56, IMAGENET, 1)
    hugging("hf_dinov2_registers", t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(image_size=56, num_register_tokens=4, **two)), 56, IMAGENET, 5)
    three = dict(image_size=64, patch_size=16, num_register_tokens=4, **base)
    hugging("hf_dinov3", t.DINOv3ViTModel(t.DINOv3ViTConfig(**three)), 64, IMAGENET, 5)
    hugging("hf_dinov3_gated", t.DINOv3ViTModel(t.DINOv3ViTConfig(use_gated_mlp=True, hidden_act="silu", **three)), 64, IMAGENET, 5)
    hugging("hf_convnext", t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], layer_norm_eps=1e-6)), 64, IMAGENET, embed=lambda o: o.pooler_output, prefix="convnext.")
    net = t.ResNetModel(t.ResNetConfig(embedding_size=16, hidden_sizes=[64, 96, 128, 160], depths=[1, 1, 2, 1]))
    hugging("hf_resnet", net, 64, IMAGENET, embed=lambda o: o.pooler_output.flatten(1), prefix="resnet.")
    net = t.EfficientNetModel(t.EfficientNetConfig(width_coefficient=0.5, depth_coefficient=1.0, hidden_dim=640, image_size=64))
    weights = draw(net, "efficientnet.", gain=1.3)
    with torch.no_grad():
        out = net(normalised(2, 64, *IMAGENET), output_hidden_states=True)
    golden("hf_efficientnet", weights, 64, IMAGENET, out.pooler_output.flatten(1), [pooled(out.hidden_states[i]) for i in (1, 3, 5, 8, 11, 15, 16)])

    # Mobile networks under timm's names
    for name, net, more in [
        ("timm_lite", _gen_efficientnet_lite("efficientnet_lite0", 0.25), dict(arch="efficientnet_lite0")),
        ("timm_tf_lite", _gen_efficientnet_lite("tf_efficientnet_lite0", 0.25, bn_eps=1e-3, pad_type="same"), dict(arch="tf_efficientnet_lite0")),
        ("timm_efficientnet", _gen_efficientnet("efficientnet_b0", 0.25), dict(arch="efficientnet_b0", gain=1.8)),
        ("timm_mobilenetv2", _gen_mobilenet_v2("mobilenetv2_100", 0.25), dict(arch="mobilenetv2_100")),
        ("timm_mobilenetv3_large", _gen_mobilenet_v3("mobilenetv3_large_100", 0.25), dict(arch="mobilenetv3_large_100", gain=1.5)),
        ("timm_mobilenetv3_small", _gen_mobilenet_v3("mobilenetv3_small_100", 0.25), dict(arch="mobilenetv3_small_100", gain=1.5)),
    ]:
        net = net.double()
        net.reset_classifier(0)
        run_timm(name, net, 65, IMAGENET, more)
    net = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, (1, 1, 2, 1), channels=(64, 24, 32, 40), base_width=128, num_classes=0)
    run_timm("timm_wide_resnet", net, 64, IMAGENET, {}, blocks=[net.layer1, net.layer2, net.layer3, net.layer4])
    import efficientnet_lite_pytorch.model as lite
    from efficientnet_lite_pytorch import utils
    args, params = utils.get_model_params("efficientnet-lite0", {"width_coefficient": 0.5, "image_size": 64})
    net = lite.EfficientNet(args, params).double()
    weights = draw(net)
    with torch.no_grad():
        f = net.extract_features(normalised(2, 64, *HALF))
    golden("lite", weights, 64, HALF, f.mean((2, 3)), [])

    with open(os.path.join(HERE, "families.json"), "w") as f:
        f.write("{\n" + ",\n".join("%s: %s" % (json.dumps(k), json.dumps(v, separators=(",", ":"))) for k, v in GOLDENS.items()) + "\n}\n")


if __name__ == "__main__":
    main()
