# SPDX-License-Identifier: MIT
"""safetensors files, in numpy: mapped for reading, filled piece by piece."""
import json
import os
import stat
import tempfile

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
        except (ValueError, RecursionError) as e:
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
    if not isinstance(meta, dict) or not all(isinstance(v, str) for v in meta.values()):
        raise FileError(f"{path}: metadata are not names and texts")
    data = np.memmap(path, np.uint8, "r", at) if size > at else np.empty(0, np.uint8)
    out = {}
    for name, t in header.items():
        try:
            begin, end = t["data_offsets"]
            raw, shape = data[begin:end], tuple(t["shape"])
            if not 0 <= begin <= end <= len(data):
                raise ValueError("offsets beyond the file")
            if any(n < 0 for n in shape):
                raise ValueError(f"shape {shape}")
            if t["dtype"] == "BF16":
                out[name] = _bfloat16(raw, shape)
            else:
                out[name] = raw.view(TYPES[t["dtype"]]).reshape(shape)
        except (KeyError, OverflowError, TypeError, ValueError) as e:
            raise FileError(f"{path}: tensor {name}: {e}") from e
    return out, meta


def check_output(path):
    """Refuse a path that a Writer could not give its file: before the work is done."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(path) or "."):
            raise
        return
    if not stat.S_ISREG(kind):
        raise FileError(f"{path} is not a regular file: name another output")


def _reserve(path, size):
    """(descriptor, name) of a new file beside path, with room for size bytes."""
    fd, name = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=os.path.dirname(path)
                                or ".")
    try:
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(fd, 0o666 & ~mask)
        # with room of its own: a mapped hole on a full disk is SIGBUS
        os.posix_fallocate(fd, 0, size)
    except OSError as e:
        os.close(fd)
        os.unlink(name)
        raise OSError(e.errno, e.strerror, path) from e
    return fd, name


class Writer:
    """A file of given tensors, filled through .tensors (mapped) in any order.

    It has its name only once close() was called: whoever finds it finds it whole.
    Leaving a with statement closes it, or removes it if an exception does.
    """

    def __init__(self, path, shapes, meta):
        """shapes: name -> (dtype, shape); meta: name -> text."""
        self.path = path
        header, at = {"__metadata__": meta}, 0
        for name, (dtype, shape) in shapes.items():
            n = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            header[name] = {"dtype": NAMES[np.dtype(dtype)], "shape": list(shape),
                            "data_offsets": [at, at + n]}
            at += n
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % 64)
        check_output(path)
        fd, self.part = _reserve(path, 8 + len(text) + at)
        try:
            with open(fd, "r+b") as f:
                f.write(len(text).to_bytes(8, "little") + text)
            self.map = np.memmap(self.part, np.uint8, "r+", 8 + len(text), (at,))
            self.tensors = {}
            for name, (dtype, shape) in shapes.items():
                begin, end = header[name]["data_offsets"]
                self.tensors[name] = self.map[begin:end].view(dtype).reshape(shape)
        except BaseException:
            self.abort()
            raise

    def close(self):
        """Write what is left and give the file its name."""
        try:
            self.map.flush()
            os.replace(self.part, self.path)
        except BaseException:
            self.abort()
            raise
        self.tensors = self.map = self.part = None

    def abort(self):
        """Remove what was written; harmless when called again or behind close()."""
        self.tensors = self.map = None
        if self.part:
            os.unlink(self.part)
        self.part = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        if kind:
            self.abort()
        else:
            self.close()


def write(path, tensors, meta):
    """A whole file at once: name -> array, name -> text."""
    with Writer(path, {k: (v.dtype, v.shape) for k, v in tensors.items()}, meta) as w:
        for name, value in tensors.items():
            w.tensors[name][...] = value
