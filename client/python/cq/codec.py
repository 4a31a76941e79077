# SPDX-License-Identifier: MIT
"""libcq's codec (include/cq.h, cq_codec_*): what workers store, bit for bit."""
import ctypes
import ctypes.util
import operator
import os

import numpy as np

PAGE = 64
MAX_N = 1 << 30
F32 = 0


class CodecError(OSError):
    """A call of libcq failed; the text is the library's."""


class _View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_uint32),
                ("pad", ctypes.c_uint32), ("stride_token", ctypes.c_int64),
                ("stride_head", ctypes.c_int64)]


class _Info(ctypes.Structure):
    _fields_ = [("sz", ctypes.c_size_t)] + \
        [(n, ctypes.c_uint32) for n in ("n_layers", "n_heads", "n_kv_heads", "head_dim",
                                        "max_position", "sinks", "window", "rotated")] + \
        [("file_bytes", ctypes.c_uint64), ("page_bytes", ctypes.c_uint64),
         ("hash", ctypes.c_uint8 * 32), ("fingerprint", ctypes.c_uint8 * 32),
         ("kernels", ctypes.c_char * 16)]


class _Part(ctypes.Structure):
    _fields_ = [("sz", ctypes.c_size_t), ("channels", ctypes.c_uint32),
                ("bits", ctypes.c_uint32), ("block_bytes", ctypes.c_uint64),
                ("name", ctypes.c_char * 16)]


def _library():
    """$CQ_LIBRARY, else the system's libcq."""
    path = os.environ.get("CQ_LIBRARY") or ctypes.util.find_library("cq")
    if not path:
        raise CodecError("no libcq: install it, or set CQ_LIBRARY to libcq.so.0")
    try:
        lib = ctypes.CDLL(path)
        lib.cq_last_error.restype = ctypes.c_char_p
        lib.cq_codec_close.restype = None
        head = [ctypes.c_void_p] + [ctypes.c_uint32] * 3
        view = ctypes.POINTER(_View)
        lib.cq_codec_open.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]
        lib.cq_codec_close.argtypes = [ctypes.c_void_p]
        lib.cq_codec_get_info.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        lib.cq_codec_get_part.argtypes = [ctypes.c_void_p] + [ctypes.c_uint32] * 2 + \
            [ctypes.c_void_p]
        lib.cq_codec_encode.argtypes = head + [view, ctypes.c_size_t, ctypes.c_void_p]
        lib.cq_codec_decode.argtypes = head + [ctypes.c_void_p, ctypes.c_size_t, view]
    except (OSError, AttributeError) as e:
        raise CodecError(f"{path}: {e}") from e
    return lib


class Codec:
    """One model file. Threads may share it until close()."""

    def __init__(self, path):
        self.handle, self.lib = None, _library()
        handle = ctypes.c_void_p()
        self._check(self.lib.cq_codec_open(os.fsencode(path), ctypes.byref(handle)))
        self.handle = handle
        info = _Info(sz=ctypes.sizeof(_Info))
        self._check(self.lib.cq_codec_get_info(handle, ctypes.byref(info)))
        for name, _ in _Info._fields_[1:10]:
            setattr(self, name, getattr(info, name))
        self.hash, self.fingerprint = bytes(info.hash), bytes(info.fingerprint)
        self.kernels = info.kernels.decode()
        self.parts = [[self._part(layer, kv) for kv in (0, 1)]
                      for layer in range(self.n_layers)]

    def _check(self, ret):
        if ret < 0:
            raise CodecError(-ret, self.lib.cq_last_error().decode())

    def _part(self, layer, kv):
        part = _Part(sz=ctypes.sizeof(_Part))
        self._check(self.lib.cq_codec_get_part(self.handle, layer, kv, ctypes.byref(part)))
        return part

    def coding(self, layer, kv):
        """"4c8b" or "fp16"."""
        self._place(layer, kv, 0)
        return self.parts[layer][kv].name.decode()

    def bits(self, layer, kv):
        """Bits of a channel."""
        self._place(layer, kv, 0)
        return self.parts[layer][kv].block_bytes * 8 / (PAGE * self.head_dim)

    @staticmethod
    def _view(x):
        return _View(x.ctypes.data, F32, 0, x.strides[0] // 4, 0)

    def _place(self, layer, kv, head):
        """Refuse what ctypes would cut to 32 bits, and what Python would count from the end."""
        for name, at, n in (("layer", layer, self.n_layers), ("kv", kv, 2),
                            ("head", head, self.n_kv_heads)):
            if not 0 <= operator.index(at) < n:
                raise ValueError(f"{name} {at}: the model has {n}")

    def _rows(self, x):
        x = np.asarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.head_dim:
            raise ValueError(f"rows of shape {x.shape}: want [n][{self.head_dim}]")
        return x if x.strides[1] == 4 and x.strides[0] % 4 == 0 else np.ascontiguousarray(x)

    def encode(self, layer, kv, head, x):
        """Codes (uint8) of rows x [n][head_dim]; kv: 0 keys, 1 values."""
        self._place(layer, kv, head)
        x = self._rows(x)
        blocks = -(-len(x) // PAGE)
        codes = np.empty(blocks * self.parts[layer][kv].block_bytes, np.uint8)
        self._check(self.lib.cq_codec_encode(self.handle, layer, kv, head,
                                             ctypes.byref(self._view(x)), len(x),
                                             codes.ctypes.data))
        return codes

    def decode(self, layer, kv, head, codes, n):
        """f32 rows [n][head_dim] of codes as encode() gives them."""
        self._place(layer, kv, head)
        codes = np.ascontiguousarray(codes, np.uint8)
        want = -(-n // PAGE) * self.parts[layer][kv].block_bytes
        if not 0 <= n <= MAX_N or codes.size < want:
            raise ValueError(f"{codes.size} bytes of codes: {n} tokens have {want}")
        out = np.empty((n, self.head_dim), np.float32)
        self._check(self.lib.cq_codec_decode(self.handle, layer, kv, head, codes.ctypes.data,
                                             n, ctypes.byref(self._view(out))))
        return out

    def close(self):
        """Free it; harmless when called again."""
        if self.handle:
            self.lib.cq_codec_close(self.handle)
        self.handle = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
