#!/usr/bin/env python3
"""Writes the reference files beside it: images in decode/, and what Pillow makes of them.

Needs Pillow (13.0 was used), numpy, tifffile, imagecodecs and libjpeg's cjpeg. Run it in
this folder: python3 make_goldens.py
decode.json   for each file, the SHA-256 of its RGB pixels after exif_transpose
resize.json   SHA-256 of Pillow's resize of the pattern image, for many sizes
"""
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import tifffile
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


def png(w, h, depth, colour, raw, interlace=0, before=b"", after=b""):
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(raw, 9)) + after + chunk(b"IEND", b"")


def tiff(w, h, tags, data, order="<"):
    """A TIFF of one strip. tags: {tag: (type, [values])}"""
    tags = dict(tags)
    extra, base = b"", 8 + len(data)
    for tag, (kind, values) in list(tags.items()):
        body = b"".join(struct.pack(order + {1: "B", 3: "H", 4: "I"}[kind], v) for v in values)
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


def put(name, data, rgb=None):
    path = os.path.join("decode", name)
    with open(path, "wb") as f:
        f.write(data)
    note(name, rgb)


def save(name, image, rgb=None, **options):
    image.save(os.path.join("decode", name), **options)
    note(name, rgb)


def note(name, rgb):
    if rgb is None:
        rgb = ImageOps.exif_transpose(Image.open(os.path.join("decode", name))).convert("RGB")
    if isinstance(rgb, np.ndarray):
        rgb = Image.fromarray(rgb if rgb.ndim == 3 else np.repeat(rgb[..., None], 3, 2))
    files[name] = {"width": rgb.width, "height": rgb.height, "sha256": hashlib.sha256(rgb.tobytes()).hexdigest()}


def orientation(n):
    exif = Image.Exif()
    exif[274] = n
    return exif.tobytes()


p, s = pattern(W, H), smooth(W, H)
rgba = p.copy()
rgba.putalpha(Image.fromarray((np.arange(W * H).reshape(H, W) % 256).astype(np.uint8), "L"))
palette = p.quantize(31)

# JPEG
for name, sampling in ("444", 0), ("422", 1), ("420", 2):
    save(f"sampling_{name}.jpg", s, quality=92, subsampling=sampling)
save("even_420.jpg", smooth(32, 16), quality=92, subsampling=2)
save("narrow_420.jpg", smooth(3, 40), quality=92, subsampling=2)
save("progressive.jpg", s, quality=80, progressive=True)
save("grey.jpg", s.convert("L"), quality=90)
save("cmyk.jpg", s.convert("CMYK"), quality=95, subsampling=0)
for n in range(1, 9):
    save(f"orientation_{n}.jpg", s, quality=90, exif=orientation(n))

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

# TIFF: fax codes, in both senses, both orders of bits, one and two dimensions
wide = Image.fromarray(np.asarray(pattern(3000, 61))[..., 2] // 128 * 255).convert("1")
runs = np.zeros((60, 2600), np.uint8)  # runs of all lengths up to 2559, which take make-up codes
for y in range(60):
    x = 0
    for k in range(60):
        n = (y * 67 + k * k * 3 + k) % (7 if k % 3 else 64 * (1 + y % 40))
        runs[y, x : x + n] = 255 * (k % 2)
        x += n
runs = Image.fromarray(runs).convert("1")
for name, image in ("small", p.convert("1")), ("wide", wide), ("runs", runs):
    for sense in (0, 1) if name == "small" else (1,):
        for fill in (1, 2) if name == "small" else (1,):
            save(f"rle_{name}_{sense}{fill}.tif", image, compression="tiff_ccitt", tiffinfo={262: sense, 266: fill})
            save(f"g4_{name}_{sense}{fill}.tif", image, compression="group4", tiffinfo={262: sense, 266: fill})
            for options in 0, 1, 4, 5:
                save(f"g3_{name}_{sense}{fill}{options}.tif", image, compression="group3", tiffinfo={262: sense, 266: fill, 292: options})


def tif(name, a, rgb=None, **options):
    f = io.BytesIO()
    tifffile.imwrite(f, a, **options)
    put(name, f.getvalue(), rgb)


def packed(v, bits):
    """Rows of samples of so many bits, the highest first, each row from a new byte on."""
    out = b""
    for row in v.reshape(v.shape[0], -1).astype(np.uint64):
        n = ((row[:, None] >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & 1).astype(np.uint8)
        out += np.packbits(n.reshape(-1)).tobytes()
    return out


g = np.asarray(p.convert("L"))
g16 = g.astype(np.uint16) * 257
a16 = a.astype(np.uint16) * 257
reverse = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))
one = {**base, 262: (3, [1]), 277: (3, [1])}
for bits in 1, 2, 4, 6, 10, 12, 14, 24, 32:
    v = g.astype(np.uint64) * (2**bits - 1) // 255
    for order in "<>":
        d = packed(v, bits)
        if bits in (24, 32) and order == "<":
            d = b"".join(int(x).to_bytes(bits // 8, "little") for x in v.ravel())
        want = ((v * 255 + (2**bits - 1) // 2) // (2**bits - 1)).astype(np.uint8)
        name = "le" if order == "<" else "be"
        put(f"grey{bits}_{name}.tif", tiff(W, H, {**one, 258: (3, [bits]), 279: (4, [len(d)])}, d, order), want)
d = np.packbits(g > 128, axis=1).tobytes().translate(reverse)
put("fill_order_2.tif", tiff(W, H, {**one, 258: (3, [1]), 266: (3, [2]), 279: (4, [len(d)])}, d), ((g > 128) * 255).astype(np.uint8))
put("no_byte_counts.tif", tiff(W, H, {**one, 258: (3, [8])}, g.tobytes()), g)
put("zero_byte_counts.tif", tiff(W, H, {**one, 258: (3, [8]), 279: (4, [0])}, g.tobytes()), g)
put("bits_once.tif", tiff(W, H, {**base, 258: (3, [8]), 262: (3, [2]), 277: (3, [3]), 279: (4, [a.size])}, a.tobytes()), a)
put("samples_missing.tif", tiff(W, H, {**base, 258: (3, [8] * 3), 262: (3, [2]), 279: (4, [a.size])}, a.tobytes()), a)
colours = np.asarray(palette.getpalette()[:93] + [0] * 3).reshape(32, 3)
indices = np.asarray(palette)
for name, scale in ("8", 1), ("16", 257):
    m = np.zeros((3, 256), int)
    m[:, :32] = colours.T * scale
    put(f"palette_map{name}.tif", tiff(W, H, {**base, 258: (3, [8]), 262: (3, [3]), 277: (3, [1]), 279: (4, [g.size]), 320: (3, m.ravel().tolist())}, indices.tobytes()), colours[indices].astype(np.uint8))
few = np.asarray(p.quantize(15))
d = packed(few, 4)
m = np.zeros((3, 16), int)
m[:, :15] = np.asarray(p.quantize(15).getpalette()[:45]).reshape(15, 3).T * 257
put("palette4.tif", tiff(W, H, {**base, 258: (3, [4]), 262: (3, [3]), 277: (3, [1]), 279: (4, [len(d)]), 320: (3, m.ravel().tolist())}, d), (m.T // 257)[few].astype(np.uint8))
save("cmyk.tif", p.convert("CMYK"))
save("cmyk_lzw.tif", p.convert("CMYK"), compression="tiff_lzw")
for name, options in (
    ("lzw", {"compression": "lzw"}),
    ("lzw_predicted", {"compression": "lzw", "predictor": True}),
    ("deflate_predicted", {"compression": "zlib", "predictor": True}),
    ("zstd", {"compression": "zstd"}),
    ("packbits", {"compression": "packbits"}),
    ("plain", {}),
):
    for order in "<>":
        name2 = name + ("_le" if order == "<" else "_be")
        tif(f"{name2}_rgb16.tif", a16, a, photometric="rgb", byteorder=order, **options)
        tif(f"{name2}_planes.tif", np.moveaxis(a, -1, 0).copy(), a, photometric="rgb", planarconfig="separate", byteorder=order, rowsperstrip=5, **options)
    tif(f"{name}_tiles.tif", a, a, photometric="rgb", tile=(16, 16), **options)
    tif(f"{name}_strips.tif", g, g, rowsperstrip=7, **options)
    tif(f"{name}_big.tif", a, a, photometric="rgb", bigtiff=True, **options)
tif("planes_tiles16.tif", np.moveaxis(a16, -1, 0).copy(), a, photometric="rgb", planarconfig="separate", tile=(16, 32), compression="zlib")
for size in "float16", "float32", "float64":
    f = (g / 255).astype(size)
    want = np.clip(f.astype(float) * 255 + 0.5, 0, 255).astype(np.uint8)
    for order in "<>":
        tif(f"{size}_{'le' if order == '<' else 'be'}.tif", f, want, byteorder=order)
    if size != "float16":
        tif(f"{size}_predicted.tif", f, want, compression="zlib", predictor=3)
tif("float_rgb.tif", (a / 255).astype(np.float32), a, photometric="rgb", compression="zlib", predictor=3)
alpha = np.asarray(rgba)
tif("grey_alpha.tif", np.dstack([g, alpha[..., 3]]), g, photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig")
tif("grey_alpha16.tif", np.dstack([g16, g16[::-1]]), g, photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig")
tif("grey_of_two.tif", np.dstack([g, g[::-1]]), g, photometric="minisblack", extrasamples=["unspecified"], planarconfig="contig", compression="lzw", predictor=True)
tif("three_greys.tif", a, a, photometric="minisblack", planarconfig="contig")
tif("rgb_and_one.tif", np.dstack([a, g]), a, photometric="rgb", extrasamples=["unspecified"])
tif("rgb_and_two.tif", np.dstack([a, g, g]), a, photometric="rgb", extrasamples=["unspecified"] * 2, compression="zlib", predictor=True)
tif("premultiplied.tif", np.dstack([(a.astype(int) * alpha[..., 3:] // 255).astype(np.uint8), alpha[..., 3]]), photometric="rgb", extrasamples=["assocalpha"])
tif("white_is_zero16.tif", 65535 - g16, g, photometric="miniswhite")
f = io.BytesIO()
with tifffile.TiffWriter(f) as t:
    t.write(a[::4, ::4], photometric="rgb", subfiletype=1)
    t.write(a, photometric="rgb")
put("thumbnail_first.tif", f.getvalue(), a)
f = io.BytesIO()
with tifffile.TiffWriter(f) as t:
    t.write(a[: H // 4 * 4 : 4, : W // 4 * 4 : 4], photometric="rgb")
    t.write(a[: H // 4 * 4, : W // 4 * 4], photometric="rgb")
put("thumbnail_unmarked.tif", f.getvalue(), a[: H // 4 * 4, : W // 4 * 4])
f = io.BytesIO()
with tifffile.TiffWriter(f) as t:
    t.write(a[::4, ::4], photometric="rgb", subfiletype=1, subifds=1)
    t.write(a, photometric="rgb", subfiletype=0)
put("sub_page.tif", f.getvalue(), a)
f = io.BytesIO()
with tifffile.TiffWriter(f) as t:
    for i in range(3):
        t.write(a if i == 0 else 255 - a, photometric="rgb")
put("pages.tif", f.getvalue(), a)
save("jpeg_in.tif", p, compression="jpeg")
save("jpeg_in_smooth.tif", smooth(70, 50), compression="jpeg", quality=90)
save("jpeg_in_grey.tif", smooth(70, 50).convert("L"), compression="jpeg")
tif("jpeg_in_tiles.tif", np.asarray(smooth(70, 50)), photometric="rgb", compression="jpeg", tile=(32, 32))
tif("jpeg_in_strips.tif", np.asarray(smooth(70, 50)), photometric="ycbcr", compression="jpeg", rowsperstrip=16)
for sub in (1, 1), (2, 1), (2, 2), (4, 1):
    ycc = np.asarray(smooth(40, 20).convert("YCbCr"))
    h2, v2 = sub
    data = b""
    for y in range(0, 20, v2):
        for x in range(0, 40, h2):
            data += ycc[y : y + v2, x : x + h2, 0].tobytes() + ycc[y, x, 1:].tobytes()
    tags = {**base, 256: (4, [40]), 257: (4, [20]), 278: (4, [20]), 258: (3, [8] * 3), 262: (3, [6]), 277: (3, [3]), 279: (4, [len(data)]), 530: (3, list(sub))}
    full = ycc.copy()
    full[..., 1:] = np.repeat(np.repeat(ycc[::v2, ::h2, 1:], v2, 0), h2, 1)
    y, cb, cr = (full[..., i].astype(int) - (128 if i else 0) for i in range(3))
    rgb = np.stack([y + (91881 * cr + 32768 >> 16), y + (-22554 * cb - 46802 * cr + 32768 >> 16), y + (116130 * cb + 32768 >> 16)], -1)
    put(f"ycbcr_{h2}{v2}.tif", tiff(40, 20, tags, data), np.clip(rgb, 0, 255).astype(np.uint8))

# samples of 12 bits in 16: what white is stands in the file
g12 = g.astype(np.uint16) * 16
want12 = ((g12.astype(int) * 255 + 2047) // 4095).astype(np.uint8)
rows12 = b"".join(b"\0" + r.astype(">u2").tobytes() for r in g12)
put("sbit12.png", png(W, H, 16, 0, rows12, before=chunk(b"sBIT", b"\x0c")), want12)
rows16 = b"".join(b"\0" + r.astype(">u2").tobytes() for r in g12 * 16)
put("sbit12_scaled.png", png(W, H, 16, 0, rows16, before=chunk(b"sBIT", b"\x0c")), ((g12.astype(int) * 16 * 255 + 32767) // 65535).astype(np.uint8))
tif("imagej12.tif", g12, want12, imagej=True, metadata={"min": 0, "max": 3000})
tif("ome12.tif", g12, want12, description='<?xml version="1.0"?><OME><Image><Pixels SignificantBits="12"/></Image></OME>', metadata=None)
for tag in 281, 341:
    d = g12.tobytes()
    put(f"max_sample_{tag}.tif", tiff(W, H, {**one, 258: (3, [16]), 279: (4, [len(d)]), tag: (3, [4095])}, d), want12)

# PNG: what libpng takes, too
raw = b"".join(b"\0" + r.tobytes() for r in a)
for bits in 2, 4:
    put(f"grey{bits}.png", png(W, H, bits, 0, b"".join(b"\0" + packed(r[None] >> (8 - bits), bits) for r in g)))
put("bad_text.png", png(W, H, 8, 2, raw, before=struct.pack(">I", 8) + b"tEXtab\0\0zzzz\1\2\3\4"), p)
put("bad_profile.png", png(W, H, 8, 2, raw, before=struct.pack(">I", 8) + b"iCCPab\0\0zzzz\1\2\3\4"), p)
put("more_pixels.png", png(W, H, 8, 2, raw + b"\0" * 300), p)
put("palette_after.png", png(W, H, 8, 2, raw, after=chunk(b"PLTE", b"\1\2\3")), p)
put("transparency_before_palette.png", png(W, H, 8, 2, raw, before=chunk(b"tRNS", b"\0\1\0\2\0\3") + chunk(b"PLTE", b"\1\2\3")), p)
put("no_end.png", png(W, H, 8, 2, raw)[:-12], p)
put("orientation_after.png", png(W, H, 8, 2, raw, after=chunk(b"eXIf", orientation(6).removeprefix(b"Exif\0\0"))), p.transpose(Image.ROTATE_270))
profile = orientation(6).hex()
text = f"\nexif\n{len(profile) // 2:8d}\n" + "\n".join(profile[i : i + 72] for i in range(0, len(profile), 72)) + "\n"
put("orientation_profile.png", png(W, H, 8, 2, raw, before=chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text.encode()))), p.transpose(Image.ROTATE_270))
xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"%s</rdf:RDF></x:xmpmeta>'
attribute = xmp % b' tiff:Orientation="6"/>'
element = xmp % b"><tiff:Orientation>6</tiff:Orientation></rdf:Description>"
put("orientation_xmp.png", png(W, H, 8, 2, raw, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + attribute)), p.transpose(Image.ROTATE_270))
save("orientation_xmp.webp", p, p.transpose(Image.ROTATE_270), lossless=True, xmp=attribute)


# JPEG: sampling factors, colour models, orientations
def cjpeg(image, *options):
    ppm = io.BytesIO()
    image.save(ppm, "PPM")
    return subprocess.run(["cjpeg", "-quality", "90", *options], input=ppm.getvalue(), stdout=subprocess.PIPE, check=True).stdout


def segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


for factors in "1x1,1x1,1x1", "2x2,1x1,1x1", "2x1,1x1,1x1", "1x2,1x1,1x1", "4x1,1x1,1x1", "1x4,1x1,1x1", "3x1,1x1,1x1", "2x2,2x1,1x2", "2x2,1x2,2x1", "2x1,1x1,2x1", "4x2,1x1,1x1", "4x1,2x1,1x1", "2x2,1x1,1x2", "1x2,1x2,1x1":
    name = factors.replace("x", "").replace(",", "_")
    put(f"factors_{name}.jpg", cjpeg(smooth(45, 29), "-sample", factors))
    put(f"factors_{name}_progressive.jpg", cjpeg(smooth(45, 29), "-sample", factors, "-progressive"))
put("restarts.jpg", cjpeg(smooth(70, 50), "-restart", "3B", "-sample", "2x2"))
put("restarts_progressive.jpg", cjpeg(smooth(70, 50), "-restart", "1", "-progressive"))
put("coarse.jpg", cjpeg(p, "-quality", "3"))
put("fine.jpg", cjpeg(p, "-quality", "100", "-sample", "1x1"))
put("optimized.jpg", cjpeg(p, "-optimize"))
with open("scans", "w") as f:
    f.write("0;\n1;\n2;\n")
put("one_by_one.jpg", cjpeg(smooth(45, 29), "-scans", "scans", "-sample", "2x2"))
os.remove("scans")
put("rgb.jpg", cjpeg(smooth(45, 29), "-rgb"))
save("grey_large.jpg", smooth(70, 50).convert("L"), quality=70, progressive=True)
f = io.BytesIO()
smooth(45, 29).convert("CMYK").save(f, "JPEG", quality=92)
put("cmyk_plain.jpg", f.getvalue().replace(f.getvalue()[2:18], b"", 1))  # without Adobe's segment
jpeg = cjpeg(s)
put("orientation_xmp.jpg", jpeg[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + attribute) + jpeg[2:])
put("orientation_xmp_element.jpg", jpeg[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + element) + jpeg[2:])
six, one_ = (segment(0xE1, b"Exif\0\0" + orientation(n).removeprefix(b"Exif\0\0")) for n in (6, 1))
maker = Image.Exif()
maker[271] = "maker"
none = segment(0xE1, b"Exif\0\0" + maker.tobytes().removeprefix(b"Exif\0\0"))
for name, first, second in ("6_1", six, one_), ("6_none", six, none), ("1_6", one_, six):
    put(f"two_exif_{name}.jpg", jpeg[:2] + first + second + jpeg[2:])

# BMP
bgr = a[..., ::-1]


def bmp(bits, compression, data, palette=b"", header=40, masks=b"", gap=0, colours=0, more=b"", height=H, width=W):
    at = 14 + header + (len(masks) if header == 40 else 0) + len(palette) + gap
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(data), 2835, 2835, colours, 0) + more.ljust(header - 40, b"\0")
    return b"BM" + struct.pack("<IHHI", at + len(data), 0, 0, at) + head + (masks if header == 40 else b"") + palette + b"\0" * gap + data


def rows(v, flip=True):
    out = b""
    for r in v[::-1] if flip else v:
        r = r.tobytes()
        out += r + b"\0" * (-len(r) % 4)
    return out


masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
swapped = struct.pack("<III", 0xFF, 0xFF00, 0xFF0000)
four = np.dstack([bgr, alpha[..., 3]])
put("bitfields32.bmp", bmp(32, 3, rows(four), masks=masks), a)
put("bitfields32_rgb.bmp", bmp(32, 3, rows(np.dstack([a, g])), masks=swapped), a)
put("bitfields32_alpha.bmp", bmp(32, 6, rows(four), masks=masks + struct.pack("<I", 0xFF000000)), a)
for header in 52, 56, 64 + 44, 124:
    put(f"header{header}.bmp", bmp(32, 3, rows(np.dstack([a, g])), header=header, more=swapped), a)
ten = (a.astype(np.uint32) * 4)
put("bitfields_10.bmp", bmp(32, 3, rows(ten[..., 0] << 20 | ten[..., 1] << 10 | ten[..., 2]), masks=struct.pack("<III", 0x3FF << 20, 0x3FF << 10, 0x3FF)), (ten * 255 // 1023).astype(np.uint8))
put("top_down.bmp", bmp(24, 0, rows(bgr, False), height=-H), a)
v565 = (a[..., 0] >> 3).astype("<u2") << 11 | (a[..., 1] >> 2).astype("<u2") << 5 | a[..., 2] >> 3
put("bitfields565.bmp", bmp(16, 3, rows(v565.astype("<u2")), masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)))
v555 = (a[..., 0] >> 3).astype("<u2") << 10 | (a[..., 1] >> 3).astype("<u2") << 5 | a[..., 2] >> 3
put("plain555.bmp", bmp(16, 0, rows(v555.astype("<u2"))))
greys = b"".join(bytes([i, i, i, 0]) for i in range(256))
put("gap.bmp", bmp(8, 0, rows(g), palette=greys, gap=10, colours=256), g)
put("few_colours.bmp", bmp(8, 0, rows(np.minimum(g, 250)), palette=greys[: 251 * 4], colours=251), np.minimum(g, 250))
sixteen = b"".join(bytes([17 * i, 17 * i, 17 * i, 0]) for i in range(16))
put("grey4.bmp", bmp(4, 0, b"".join(packed(r[None] >> 4, 4).ljust((W * 4 + 31) // 32 * 4, b"\0") for r in g[::-1]), palette=sixteen), (g >> 4) * 17)
put("os2.bmp", b"BM" + struct.pack("<IHHI", 26 + len(rows(bgr)), 0, 0, 26) + struct.pack("<IHHHH", 12, W, H, 1, 24) + rows(bgr), a)


def rle8(v):
    out = b""
    for y, r in enumerate(v[::-1]):
        x = 0
        while x < len(r):
            n = 1
            while x + n < len(r) and r[x + n] == r[x] and n < 255:
                n += 1
            if n == 1 and len(r) - x >= 5:  # five as they are, padded to an even number
                out += bytes([0, 5]) + r[x : x + 5].tobytes() + b"\0"
                x += 5
                continue
            out += bytes([n, r[x]])
            x += n
        out += b"\0\0" if y + 1 < len(v) else b"\0\1"
    return out


blocky = (g // 64 * 64).astype(np.uint8)
put("rle8.bmp", bmp(8, 1, rle8(blocky), palette=greys), blocky)
stepped = np.zeros((9, 12), np.uint8)
stepped[8, :4] = 200
stepped[5, 6:9] = 100  # by a step of 2 to the right and 3 up
put("rle8_step.bmp", bmp(8, 1, bytes([4, 200, 0, 2, 2, 3, 3, 100, 0, 1]), palette=greys, height=9, width=12), stepped)
four_bits = np.tile(np.arange(12, dtype=np.uint8), (4, 1))
coded = b"".join(bytes([0, 12]) + packed(r[None], 4) + b"\0\0" for r in four_bits)
put("rle4.bmp", bmp(4, 2, coded + b"\0\1", palette=sixteen, height=4, width=12), four_bits * 17)
put("rle4_runs.bmp", bmp(4, 2, bytes([7, 0x5A, 5, 0xF0, 0, 0]) * 4 + b"\0\1", palette=sixteen, height=4, width=12), np.tile(np.array([5, 10, 5, 10, 5, 10, 5, 15, 0, 15, 0, 15], np.uint8), (4, 1)) * 17)

# what must be refused
refused = {}
for name, image, options in (
    ("float.tif", p.convert("F"), {}),
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

# resize.json was made with Pillow 9.4. Later versions choose by the sizes which pass comes
# first; models were trained and references made with the horizontal one first.
if "--resize" not in sys.argv:
    sys.exit()
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
