# SPDX-License-Identifier: MIT
"""safetensors files, in numpy: mapped for reading, filled piece by piece."""
import json
import os

import numpy as np

TYPES = {"F16": np.float16, "F32": np.float32, "I8": np.int8, "U8": np.uint8,
         "U16": np.uint16, "I32": np.int32, "I64": np.int64}
NAMES = {np.dtype(t): name for name, t in TYPES.items()}
MAX_HEADER = 1 << 24


class FileError(ValueError):
    """A file is not what it has to be; the text names it."""


def _header(path):
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        n = int.from_bytes(f.read(8), "little")
        if size < 8 or n > min(MAX_HEADER, size - 8):
            raise FileError(f"{path} is not safetensors")
        try:
            header = json.loads(f.read(n))
        except ValueError as e:
            raise FileError(f"{path}: header of safetensors: {e}") from e
    if not isinstance(header, dict):
        raise FileError(f"{path}: header of safetensors is not an object")
    return header, 8 + n, size


def _bfloat16(raw, shape):
    wide = raw.view(np.uint16).astype(np.uint32) << 16
    return wide.view(np.float32).reshape(shape)


def read(path):
    """(tensors by name, metadata). Tensors are mapped; BF16 is copied to f32."""
    header, at, size = _header(path)
    meta = header.pop("__metadata__", {})
    data = np.memmap(path, np.uint8, "r", at) if size > at else np.empty(0, np.uint8)
    out = {}
    for name, t in header.items():
        try:
            begin, end = t["data_offsets"]
            raw, shape = data[begin:end], tuple(t["shape"])
            if not 0 <= begin <= end <= len(data):
                raise ValueError("offsets beyond the file")
            if t["dtype"] == "BF16":
                out[name] = _bfloat16(raw, shape)
            else:
                out[name] = raw.view(TYPES[t["dtype"]]).reshape(shape)
        except (KeyError, TypeError, ValueError) as e:
            raise FileError(f"{path}: tensor {name}: {e}") from e
    return out, meta


class Writer:
    """A file of given tensors, filled through .tensors (mapped) in any order.

    It has its name only once close() was called: whoever finds it finds it whole.
    """

    def __init__(self, path, shapes, meta):
        """shapes: name -> (dtype, shape); meta: name -> text."""
        self.path, self.part = path, path + ".part"
        header, at = {"__metadata__": meta}, 0
        for name, (dtype, shape) in shapes.items():
            n = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            header[name] = {"dtype": NAMES[np.dtype(dtype)], "shape": list(shape),
                            "data_offsets": [at, at + n]}
            at += n
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % 64)
        with open(self.part, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            f.truncate(8 + len(text) + at)
        self.map = np.memmap(self.part, np.uint8, "r+", 8 + len(text), (at,))
        self.tensors = {}
        for name, (dtype, shape) in shapes.items():
            begin, end = header[name]["data_offsets"]
            self.tensors[name] = self.map[begin:end].view(dtype).reshape(shape)

    def close(self):
        """Write what is left and give the file its name."""
        self.map.flush()
        self.tensors = self.map = None
        os.replace(self.part, self.path)


def write(path, tensors, meta):
    """A whole file at once: name -> array, name -> text."""
    w = Writer(path, {k: (v.dtype, v.shape) for k, v in tensors.items()}, meta)
    for name, value in tensors.items():
        w.tensors[name][...] = value
    w.close()
