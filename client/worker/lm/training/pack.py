# SPDX-License-Identifier: MIT
"""Weights in 8 bits, half the size of fp16.

`pack.py pack FOLDER PACKED` reads config.json and model.safetensors of FOLDER and writes both
to PACKED; `pack.py unpack PACKED FOLDER` is the way back, and what it writes is the model: weights
are a whole number from -127 to 127 times the scale of BLOCK neighbours in a row.
"""
import argparse
import os
import shutil

import numpy as np

import model

BLOCK = 64              # weights of a row that share a scale
SCALE = ".scale"


def blocks(rows):
    """[rows][columns] as [rows][blocks][BLOCK], zeros at the end."""
    n, columns = rows.shape
    return np.pad(rows, ((0, 0), (0, -columns % BLOCK))).reshape(n, -1, BLOCK)


def integers(x, scale):
    """Blocks of x by their scales."""
    step = np.maximum(scale.astype(np.float32), np.finfo(np.float32).tiny)[..., None]
    return np.clip(np.rint(x / step), -127, 127).astype(np.int8)


def weights(whole, scale):
    """What integers and their scales say, as fp16."""
    return (whole.astype(np.float32) * scale.astype(np.float32)[..., None]).astype(np.float16)


def scales(x):
    """Scales of blocks. Weights that were unpacked get one that gives them as they are: where
    fp16 has few bits for scales, it need not be the nearest to a 127th of the largest."""
    scale = (np.abs(x).max(-1) / 127).astype(np.float16)
    found = scale
    for s in (np.nextafter(scale, np.float16(np.inf)), np.nextafter(scale, np.float16(0)), scale):
        same = (weights(integers(x, s), s) == x).all(-1)
        found = np.where(same, s, found)
    return found


def pack(tensors):
    """{name: fp16 array} with every matrix as integers and, under another name, scales."""
    out = {}
    for name, a in tensors.items():
        if a.ndim != 2:
            out[name] = a
            continue
        x = blocks(a.astype(np.float32))
        scale = scales(x)
        whole = integers(x, scale)
        out[name] = whole.reshape(len(a), -1)[:, :a.shape[1]]
        out[name + SCALE] = scale
    return out


def unpack(tensors):
    """What pack() was given, rounded."""
    out = {}
    for name, a in tensors.items():
        if name.endswith(SCALE):
            continue
        if a.dtype == np.int8:
            x = weights(blocks(a), tensors[name + SCALE])
            a = x.reshape(len(a), -1)[:, :a.shape[1]]
        out[name] = a
    return out


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("what", choices=("pack", "unpack"))
    args.add_argument("source")
    args.add_argument("target")
    args = args.parse_args()
    os.makedirs(args.target, exist_ok=True)
    change = pack if args.what == "pack" else unpack
    made = change(model.read_tensors(os.path.join(args.source, "model.safetensors")))
    path = os.path.join(args.target, "model.safetensors")
    model.write_tensors(path + ".part", made)
    shutil.copy(os.path.join(args.source, "config.json"), args.target)
    os.replace(path + ".part", path)


if __name__ == "__main__":
    main()
