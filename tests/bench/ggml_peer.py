# SPDX-License-Identifier: MIT
"""ggml's attention on the CPU, from an installed library: for peers.py.

GGML_DIR names the folder ggml was installed into (its libraries lie there or in
its lib, lib64 or bin). Nothing of ggml is needed otherwise: the few functions used
are bound here by their names, those of ggml.h, ggml-backend.h and ggml-cpu.h.
"""

import ctypes
import os
import sys
from ctypes import c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

LIBRARIES = ("libggml-base.so", "libggml-cpu.so", "libggml.so")
F32 = 0
TYPES = {"f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}  # enum ggml_type
# An object's header, its alignment and a graph's nodes, with room to spare
OVERHEAD = 64 << 10


class Params(ctypes.Structure):
    """struct ggml_init_params"""
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


# Name: what it returns, what it takes
FUNCTIONS: Dict[str, Tuple[Any, List[Any]]] = {
    "ggml_init": (c_void_p, [Params]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_3d": (c_void_p, [c_void_p, c_int, c_int64, c_int64, c_int64]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64,
                                       c_void_p]),
    "ggml_flash_attn_ext": (c_void_p, [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,
                                       c_float, c_float, c_float]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_free": (None, [c_void_p]),
}


class Library:
    """The functions above as attributes, without "ggml_"."""

    def __init__(self, folder: Path) -> None:
        """OSError: no library there, or one that lacks a function."""
        found = [path for sub in ("", "lib", "lib64", "bin") for name in LIBRARIES
                 if (path := folder / sub / name).exists()]
        if not found:
            raise OSError(f"no {' or '.join(LIBRARIES)}")
        loaded = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in found]
        for name, (result, takes) in FUNCTIONS.items():
            function = next((getattr(lib, name) for lib in loaded if hasattr(lib, name)), None)
            if function is None:
                raise OSError(f"no {name}() in {', '.join(path.name for path in found)}")
            function.restype = result
            function.argtypes = takes
            setattr(self, name[len("ggml_"):], function)


def load() -> Optional[Any]:
    """The library that GGML_DIR names, or None and a line on stderr."""
    folder = os.environ.get("GGML_DIR")
    try:
        if not folder:
            raise OSError("GGML_DIR names no folder")
        return Library(Path(folder))
    except OSError as err:
        print(f"peers: ggml: {folder + ': ' if folder else ''}{err}; left out", file=sys.stderr)
        return None


class Attention:
    """One query row over several sets of K and V of one type, in turns."""

    def __init__(self, lib: Any, numpy: Any, kind: str, shape: Tuple[int, int, int, int],
                 sets: int) -> None:
        """@shape: kv heads, query heads each, channels, tokens."""
        n_kv, gqa, dim, context = shape
        self.lib, self.numpy, self.shape = lib, numpy, shape
        row = lib.row_size(TYPES[kind], dim)
        size = sets * (2 * n_kv * context * row + 4 * OVERHEAD) + 8 * n_kv * gqa * dim * sets
        self.ctx = lib.init(Params(size + (1 << 20), None, False))
        self.backend = lib.backend_cpu_init()
        if not self.ctx or not self.backend:
            raise MemoryError("ggml_init() or ggml_backend_cpu_init() failed")
        lib.backend_cpu_set_n_threads(self.backend, 1)
        rng = numpy.random.default_rng(1)
        self.q = rng.standard_normal((n_kv * gqa, dim), dtype=numpy.float32)
        self.k, self.v = (rng.standard_normal((n_kv, context, dim), dtype=numpy.float32)
                          for _ in range(2))
        self.graphs, self.out = [], []
        for _ in range(sets):
            q = self.tensor(F32, (dim, 1, n_kv * gqa), self.q)
            k = self.tensor(TYPES[kind], (dim, context, n_kv), self.k)
            v = self.tensor(TYPES[kind], (dim, context, n_kv), self.v)
            out = lib.flash_attn_ext(self.ctx, q, k, v, None, dim ** -0.5, 0.0, 0.0)
            graph = lib.new_graph(self.ctx)
            lib.build_forward_expand(graph, out)
            self.graphs.append(graph)
            self.out.append(out)

    def tensor(self, kind: int, extent: Tuple[int, int, int], values: Any) -> Any:
        """A tensor of @values."""
        made = self.lib.new_tensor_3d(self.ctx, kind, *extent)
        data = self.lib.get_data(made)
        if kind == F32:
            ctypes.memmove(data, values.ctypes.data, values.nbytes)
        else:
            self.lib.quantize_chunk(kind, values.ctypes.data, data, 0,
                                    values.size // extent[0], extent[0], None)
        return made

    def call(self, i: int) -> None:
        """The next set."""
        if self.lib.backend_graph_compute(self.backend, self.graphs[i % len(self.graphs)]):
            raise RuntimeError("ggml_backend_graph_compute() failed")

    def error(self) -> float:
        """Of the last result of the first set, relative, against the values not coded."""
        numpy, (n_kv, gqa, dim, _) = self.numpy, self.shape
        self.call(0)
        data = ctypes.cast(self.lib.get_data(self.out[0]), ctypes.POINTER(c_float))
        got = numpy.ctypeslib.as_array(data, (n_kv, gqa, dim)).astype(float)
        s = numpy.einsum("hgd,htd->hgt", self.q.reshape(n_kv, gqa, dim), self.k) * dim ** -0.5
        p = numpy.exp(s - s.max(-1, keepdims=True))
        want = numpy.einsum("hgt,htd->hgd", p / p.sum(-1, keepdims=True), self.v)
        return float(numpy.linalg.norm(got - want) / numpy.linalg.norm(want))

    def close(self) -> None:
        """Free everything."""
        self.lib.backend_free(self.backend)
        self.lib.free(self.ctx)


def run(lib: Any, numpy: Any, shape: Tuple[int, int, int], context: int, rotate: int,
        measure: Callable[[str, Callable[[int], Any], float], None]) -> None:
    """Every type at one context; @measure gets its name, what to call, and its error."""
    for kind, number in TYPES.items():
        bytes_of = 2 * shape[0] * context * lib.row_size(number, shape[2])
        peer = Attention(lib, numpy, kind, (*shape, context), max(1, rotate // bytes_of))
        measure(f"attention, {kind}", peer.call, peer.error())
        peer.close()
