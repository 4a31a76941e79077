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


def pack(tensors):
    """{name: fp16 array} with every matrix as integers and, under another name, scales."""
    out = {}
    for name, a in tensors.items():
        if a.ndim != 2:
            out[name] = a
            continue
        x = blocks(a.astype(np.float32))
        scale = (np.abs(x).max(-1) / 127).astype(np.float16)
        step = np.maximum(scale.astype(np.float32), np.finfo(np.float32).tiny)[..., None]
        whole = np.clip(np.rint(x / step), -127, 127).astype(np.int8)
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
            x = blocks(a.astype(np.float32)) * tensors[name + SCALE].astype(np.float32)[..., None]
            a = x.reshape(len(a), -1)[:, :a.shape[1]].astype(np.float16)
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
