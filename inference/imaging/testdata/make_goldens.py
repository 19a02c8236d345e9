#!/usr/bin/env python3
"""Writes the reference files beside it: images in decode/, and what Pillow makes of them.

Needs Pillow (9.4 was used) and numpy. Run it in this folder: python3 make_goldens.py
decode.json   for each file, the RGB pixels after exif_transpose: SHA-256, and the
              pixels themselves where decoders may differ by rounding
resize.json   SHA-256 of Pillow's resize of the pattern image, for many sizes
"""
import base64
import hashlib
import json
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps


def pattern(w, h):
    """The test picture; pattern() in the Go tests makes the same."""
    x = np.arange(w, dtype=np.uint64)[None, :]
    y = np.arange(h, dtype=np.uint64)[:, None]
    n = (x * 2654435761 + y * 40503 + x * y * 97) & 0xFFFFFFFF
    n = (n ^ (n >> 15)) * 2246822519 & 0xFFFFFFFF
    n = n ^ (n >> 13)
    r = (x * 255 // max(w - 1, 1) + n % 32) % 256 + 0 * y
    g = (y * 255 // max(h - 1, 1) + (n >> 8) % 16) % 256 + 0 * x
    b = np.where((x // 5 + y // 3) % 2 == 0, 230, 20) + (n >> 16) % 20
    return Image.fromarray(np.stack([r, g, b], -1).astype(np.uint8), "RGB")


def smooth(w, h):
    """A soft picture for the lossy formats."""
    x = np.arange(w)[None, :] / w
    y = np.arange(h)[:, None] / h
    r = 128 + 100 * np.sin(5 * x + 2 * y)
    g = 128 + 100 * np.cos(3 * y - 4 * x * y)
    b = 255 * ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1)
    return Image.fromarray(np.clip(np.stack([r + 0 * y, g, b], -1), 0, 255).astype(np.uint8), "RGB")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(w, h, depth, colour, raw, interlace=0):
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def tiff(w, h, tags, data, order="<"):
    """A baseline TIFF of one strip. tags: {tag: (type, [values])}"""
    tags = dict(tags)
    extra, base = b"", 8 + len(data)
    for tag, (kind, values) in list(tags.items()):
        size = {3: 2, 4: 4}[kind]
        body = b"".join(struct.pack(order + {3: "H", 4: "I"}[kind], v) for v in values)
        if len(body) > 4:
            tags[tag] = (kind, len(values), struct.pack(order + "I", base + len(extra)))
            extra += body
        else:
            tags[tag] = (kind, len(values), body.ljust(4, b"\0"))
    at = base + len(extra)
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at) + data + extra
    out += struct.pack(order + "H", len(tags))
    for tag in sorted(tags):
        kind, n, value = tags[tag]
        out += struct.pack(order + "HHI", tag, kind, n) + value
    return out + struct.pack(order + "I", 0)


os.makedirs("decode", exist_ok=True)
W, H = 37, 23
files = {}


def put(name, data, rgb=None, tolerance=0):
    path = os.path.join("decode", name)
    with open(path, "wb") as f:
        f.write(data)
    note(name, rgb, tolerance)


def save(name, image, rgb=None, tolerance=0, **options):
    image.save(os.path.join("decode", name), **options)
    note(name, rgb, tolerance)


def note(name, rgb, tolerance):
    if rgb is None:
        rgb = ImageOps.exif_transpose(Image.open(os.path.join("decode", name))).convert("RGB")
    raw = rgb.tobytes()
    entry = {"width": rgb.width, "height": rgb.height, "sha256": hashlib.sha256(raw).hexdigest()}
    if tolerance:
        entry["tolerance"] = tolerance
        entry["pixels"] = base64.b64encode(zlib.compress(raw, 9)).decode()
    files[name] = entry


def orientation(n):
    exif = Image.Exif()
    exif[274] = n
    return exif.tobytes()


p, s = pattern(W, H), smooth(W, H)
rgba = p.copy()
rgba.putalpha(Image.fromarray((np.arange(W * H).reshape(H, W) % 256).astype(np.uint8), "L"))
palette = p.quantize(31)

# JPEG: the inverse DCT is not specified to the bit
for name, sampling in ("444", 0), ("422", 1), ("420", 2):
    save(f"sampling_{name}.jpg", s, quality=92, subsampling=sampling, tolerance=3)
save("even_420.jpg", smooth(32, 16), quality=92, subsampling=2, tolerance=3)
save("narrow_420.jpg", smooth(3, 40), quality=92, subsampling=2, tolerance=3)
save("progressive.jpg", s, quality=80, progressive=True, tolerance=3)
save("grey.jpg", s.convert("L"), quality=90, tolerance=3)
save("cmyk.jpg", s.convert("CMYK"), quality=95, subsampling=0, tolerance=3)
for n in range(1, 9):
    save(f"orientation_{n}.jpg", s, quality=90, exif=orientation(n), tolerance=3)

# PNG
save("bilevel.png", p.convert("1"))
save("grey.png", p.convert("L"))
save("grey_alpha.png", rgba.convert("LA"))
save("palette.png", palette)
save("palette_transparent.png", palette, transparency=3)
save("rgb.png", p)
save("rgba.png", rgba)
save("orientation_6.png", p, exif=orientation(6))
n16 = (np.arange(W * H, dtype=np.uint32).reshape(H, W) * 77 + 5) % 65536
to8 = ((n16 * 255 + 32767) // 65535).astype(np.uint8)
grey16 = Image.fromarray(to8, "L").convert("RGB")
put("grey16.png", png(W, H, 16, 0, b"".join(b"\0" + r.astype(">u2").tobytes() for r in n16)), grey16)
rgb16 = np.stack([n16, 65535 - n16, n16 // 2], -1)
rgb16_8 = Image.fromarray(((rgb16 * 255 + 32767) // 65535).astype(np.uint8), "RGB")
put("rgb16.png", png(W, H, 16, 2, b"".join(b"\0" + r.astype(">u2").tobytes() for r in rgb16)), rgb16_8)
a = np.asarray(p)
raw = b""
for x0, y0, dx, dy in (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2):
    raw += b"".join(b"\0" + r.tobytes() for r in a[y0::dy, x0::dx])
put("interlaced.png", png(W, H, 8, 2, raw, 1), p)

# BMP
for name, image in ("bilevel", p.convert("1")), ("grey", p.convert("L")), ("palette", palette), ("rgb", p), ("rgba", rgba):
    save(f"{name}.bmp", image)

# TIFF
for name, image in ("bilevel", p.convert("1")), ("grey", p.convert("L")), ("palette", palette), ("rgb", p), ("rgba", rgba):
    save(f"{name}.tif", image)
for name, kind in ("lzw", "tiff_lzw"), ("deflate", "tiff_adobe_deflate"), ("packbits", "packbits"):
    save(f"{name}.tif", p, compression=kind)
save("orientation_8.tif", p, p.transpose(Image.ROTATE_90), tiffinfo={274: 8})
base = {256: (4, [W]), 257: (4, [H]), 259: (3, [1]), 273: (4, [8]), 278: (4, [H])}
for order, name in ("<", "little"), (">", "big"):
    d = n16.astype(order + "u2").tobytes()
    put(f"grey16_{name}.tif", tiff(W, H, {**base, 258: (3, [16]), 262: (3, [1]), 277: (3, [1]), 279: (4, [len(d)])}, d, order), grey16)
d = rgb16.astype("<u2").tobytes()
put("rgb16.tif", tiff(W, H, {**base, 258: (3, [16] * 3), 262: (3, [2]), 277: (3, [3]), 279: (4, [len(d)])}, d), rgb16_8)
d = (255 - np.asarray(p.convert("L"))).tobytes()
put("white_is_zero.tif", tiff(W, H, {**base, 258: (3, [8]), 262: (3, [0]), 277: (3, [1]), 279: (4, [len(d)])}, d), p.convert("L").convert("RGB"))

# WebP
save("lossless.webp", p, lossless=True)
save("lossless_alpha.webp", rgba, lossless=True, exact=True)
save("lossy.webp", s, quality=80)
save("lossy_even.webp", smooth(32, 16), quality=60)
save("lossy_alpha.webp", rgba, quality=80)
save("orientation_3.webp", s, quality=80, exif=orientation(3))

# what must be refused
refused = {}
for name, image, options in (
    ("float.tif", p.convert("F"), {}),
    ("cmyk.tif", p.convert("CMYK"), {}),
    ("jpeg_in.tif", p, {"compression": "jpeg"}),
    ("signed32.tif", p.convert("I"), {}),
    ("picture.gif", palette, {}),
):
    image.save(os.path.join("decode", name), **options)
    refused[name] = "unsupported"
s.save("decode/animation.webp", save_all=True, append_images=[p], duration=100)
refused["animation.webp"] = "unsupported"

with open("decode.json", "w") as f:
    json.dump({"files": files, "refused": refused}, f, indent=1)
    f.write("\n")

resizes = []
for (w, h), targets in {
    (37, 23): [(37, 23), (74, 46), (16, 16), (100, 9), (7, 60), (37, 11), (12, 23), (1, 1), (224, 224)],
    (120, 120): [(248, 248), (224, 224), (60, 60), (33, 97)],
    (319, 241): [(248, 187), (32, 32), (319, 100), (100, 241), (640, 480), (3, 5)],
    (1, 1): [(5, 3)],
    (2, 300): [(9, 31)],
}.items():
    for tw, th in targets:
        for name, filter in ("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC):
            raw = pattern(w, h).resize((tw, th), filter).tobytes()
            resizes.append({"from": [w, h], "to": [tw, th], "filter": name, "sha256": hashlib.sha256(raw).hexdigest()})
with open("resize.json", "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(r) for r in resizes) + "\n]\n")
